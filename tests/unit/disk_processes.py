"""What the tests of the cache start as processes of their own, to be stopped, killed and counted."""

from __future__ import annotations

import hashlib
import json
import os
import random
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from s3tasks import ObjectRef
from s3tasks.cache import Cache
from s3tasks.disk import BoundedDirectory
from s3tasks.evidence import Served

KEYS = 40
STEPS = ("open", "makedirs", "ftruncate", "write", "pwrite", "fsync", "lstat", "replace", "unlink", "close", "stat")


def taken_bytes(directory: Path) -> int:
    """What the files in the directory take on the disk, or would if they were not sparse: whichever is more for each."""
    files = [os.stat(os.path.join(folder, name)) for folder, _, names in os.walk(directory) for name in names]
    return sum(max(status.st_blocks * 512, -(-status.st_size // 4096) * 4096) for status in files)


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def body_of(text: str, size_bytes: int) -> bytes:
    return random.Random(text).randbytes(size_bytes)


def served_of(body: bytes) -> Served:
    return Served(hashlib.sha256(body).hexdigest(), size=len(body))


def check_all(cache: Cache) -> int:
    """How many keys are kept; raises where one gives a body that does not belong to its ETag."""
    kept = 0
    for number in range(KEYS):
        ref = ObjectRef("bucket", f"key-{number}")
        etag = cache.etag_of(ref)
        cached = None if etag is None else cache.get(ref, etag)
        if cached is not None:
            kept += 1
            assert hashlib.sha256(cached.body).hexdigest() == etag
    return kept


def fills(directory: str, max_bytes: int, seed: int, number: int) -> None:
    """Fills a few keys with ever new bodies, and reads others; for ever if `number` is 0."""
    cache, chance = Cache(directory, max_bytes), random.Random(seed)
    say("started")
    made = 0
    while number == 0 or made < number:
        made += 1
        size_bytes = chance.choice([0, 100, 4000, 30_000, 60_000, chance.randrange(max_bytes // 4)])
        body = body_of(f"{seed} {made}", size_bytes)
        cache.put(ObjectRef("bucket", f"key-{chance.randrange(KEYS)}"), served_of(body), body)
        if made % 5 == 0:
            check_all(cache)
    say(json.dumps(cache.counts()))


def steps(directory: str, max_bytes: int) -> None:
    """Fills of forks that are killed at their first, second, third … call of the system; one line after each."""
    bounded, step, killed = BoundedDirectory(directory, max_bytes), 0, True
    bounded.fill(f"{0:064x}", [b"so that there is a total"])
    while killed:
        step += 1
        child = os.fork()
        if child == 0:
            _die_at(step)
            bounded.fill(f"{step:064x}", [b"head", body_of(str(step), 30_000)])
            os._exit(0)
        killed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        left = len(list(Path(directory, "filling").glob("*"))) if Path(directory, "filling").exists() else 0
        said = {"killed": killed, "taken": taken_bytes(Path(directory)), "total": bounded.total_bytes(), "fills": left}
        say(json.dumps(said))


def _die_at(step: int) -> None:
    left = [step]

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def made(*args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            if call is write:
                args = (args[0], bytes(args[1][:8192]))
            return call(*args, **kwargs)

        return made

    write = os.write
    for step_name in STEPS:
        setattr(os, step_name, counted(getattr(os, step_name)))


def dies_locked(directory: str, max_bytes: int) -> None:
    """Forks in the middle of a fill, with all locks held, and is killed; the fork lives on until its input ends."""
    bounded = BoundedDirectory(directory, max_bytes)
    with bounded._locked():
        bounded._reserve(8192)
        bounded._begin(os.path.join(bounded._filling, "fill-" + "0" * 16), 5000)
        if os.fork():
            os.kill(os.getpid(), signal.SIGKILL)
        say("forked")
        sys.stdin.read()
        os._exit(0)


def holds_lock(directory: str, max_bytes: int) -> None:
    """Holds the lock until its input ends."""
    with BoundedDirectory(directory, max_bytes)._locked():
        say("locked")
        sys.stdin.read()


def fills_under_limit(directory: str, max_bytes: int) -> None:
    """Cannot write files of more than 8 KiB."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
    cache = Cache(directory, max_bytes)
    for size_bytes in (20_000, 1000):
        body = body_of("limited", size_bytes)
        cache.put(ObjectRef("bucket", f"key-{size_bytes % KEYS}"), served_of(body), body)
    say(json.dumps({**cache.counts(), "kept": check_all(cache)}))


PROGRAMS: dict[str, Callable[..., None]] = {
    program.__name__: program for program in (fills, steps, dies_locked, holds_lock, fills_under_limit)
}

if __name__ == "__main__":
    name, where, *numbers = sys.argv[1:]
    PROGRAMS[name](where, *map(int, numbers))
