"""Judges the heartbeat file of a worker: `python -I worker_config/probe.py live` (or `ready`); ends with 0 for yes, 1 for no.

It never imports Celery, never tells Redis a secret, and never blames a worker for a Redis that is away: killing workers during an
outage would not end it, and would lose them the time to recover.

`live`: the event loop turns. Where it does not, Redis is asked whether it answers at all: an event loop that stores a result (or
gives a task back) stands still for as long as Redis is away, and that is no fault of the worker's. `ready`: it takes messages.
Celery's own `inspect ping` is no such probe: it starts a Python with all of Celery each time, and fails whenever Redis does.
"""

import contextlib
import os
import socket
import ssl
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

# Longer than anything that stops the loop of a healthy worker: the soft shutdown sleeps 30 s, a silent Redis takes 45 s to give up.
STALE_AFTER_SECONDS = 120.0
# Twice, so that Redis and the backend both get their chance within a probe's timeout of 5 s.
ANSWER_WITHIN_SECONDS = 1.5
# As in celeryconfig.py.
DEFAULT_BROKER_URL = "redis://127.0.0.1:6379/0"
# A Redis that loads its data, or cannot write to its disk, answers PING with an error of its own and is of no use yet.
ANSWERS = (b"+PONG", b"-NOAUTH", b"-NOPERM")


def problem(question: str, environment: Mapping[str, str]) -> str | None:
    """What speaks against it; None where nothing does."""
    if question not in ("live", "ready"):
        return f"{question!r} is neither live nor ready"
    path = Path(environment.get("CELERY_HEARTBEAT_FILE") or os.devnull)
    if path == Path(os.devnull):
        return "CELERY_HEARTBEAT_FILE is not set"
    try:
        state, beaten_at = path.read_text().strip(), path.stat().st_mtime
    except OSError as missing:
        return f"no heartbeat: {missing}"
    if question == "live":
        return _problem_with_silence(path, beaten_at, environment)
    if state != "consuming":
        return f"the worker is {state}"
    return _silence(beaten_at)


def _problem_with_silence(path: Path, beaten_at: float, environment: Mapping[str, str]) -> str | None:
    """Silence counts from the last time that Redis was found away: a worker gets as long again once it is back."""
    excuse = path.with_name(f"{path.name}.excused")
    with contextlib.suppress(FileNotFoundError):
        beaten_at = max(beaten_at, excuse.stat().st_mtime)
    silence = _silence(beaten_at)
    if silence is None or all(answers(url) for url in redis_urls(environment)):
        return silence
    excuse.touch()
    return None


def _silence(beaten_at: float) -> str | None:
    silent_seconds = time.time() - beaten_at
    return None if silent_seconds < STALE_AFTER_SECONDS else f"no heartbeat for {silent_seconds:.0f} s"


def redis_urls(environment: Mapping[str, str]) -> list[str]:
    """What a worker's event loop may be waiting for: the broker and the result backend."""
    broker = environment.get("CELERY_BROKER_URL", DEFAULT_BROKER_URL)
    return list(dict.fromkeys([broker, environment.get("CELERY_RESULT_BACKEND", broker)]))


def answers(url: str) -> bool:
    """Whether a Redis answers there. One that cannot be asked (behind sentinels, of several) counts as away."""
    try:
        with _connected(urlsplit(url)) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith(ANSWERS)
    except (OSError, ValueError):
        return False


def _connected(place: SplitResult) -> socket.socket:
    if place.scheme in ("unix", "redis+socket"):
        local = socket.socket(socket.AF_UNIX)
        local.settimeout(ANSWER_WITHIN_SECONDS)
        local.connect(place.path)
        return local
    if place.scheme not in ("redis", "rediss") or ";" in place.netloc + place.path:
        raise ValueError(f"{place.scheme} is not asked")
    plain = socket.create_connection((place.hostname or "127.0.0.1", place.port or 6379), ANSWER_WITHIN_SECONDS)
    if place.scheme == "redis":
        return plain
    context = ssl.create_default_context()
    # Nothing is told, and nothing that is heard is believed but that somebody is there.
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context.wrap_socket(plain)


if __name__ == "__main__":
    sys.exit(problem(sys.argv[1] if len(sys.argv) > 1 else "", os.environ))
