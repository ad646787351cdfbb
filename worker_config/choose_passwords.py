"""Chooses the passwords of Redis's users: `python3 choose_passwords.py DIRECTORY [HOST[:PORT]]` fills in redis-acl.conf there.

It never prints a password, never overwrites a file, and never writes into this folder, which goes into images and wheels.

Beside redis-acl.conf (hashes only) it leaves one file of environment variables for each user, readable by its owner alone:
worker.env, producer.env, monitor.env, operator.env and admin.env; and compose.env, with what docker/compose.yaml asks for.
Nothing but Python's own library is needed.
"""

import hashlib
import os
import re
import secrets
import sys
from pathlib import Path

_HERE = Path(__file__).resolve().parent
_USERS = {
    "default": "admin", "s3tasks-worker": "worker", "s3tasks-producer": "producer", "s3tasks-monitor": "monitor",
    "s3tasks-operator": "operator",
}
_USAGE = "usage: choose_passwords.py DIRECTORY [HOST[:PORT]]"


def fill_in(directory: Path, address: str) -> list[Path]:
    """Writes the files, and returns which. FileExistsError, before anything is written, where one of them is there already.

    Without an administrator's old password a new one helps nobody: to change passwords, choose another directory.
    """
    if directory.resolve().is_relative_to(_HERE):
        raise ValueError(f"{directory} is inside {_HERE}, which goes into images and wheels: choose another directory")
    acl = (_HERE / "redis-acl.conf").read_text(encoding="ascii")
    files: dict[Path, tuple[str, int]] = {}
    for user, name in _USERS.items():
        # Of characters that no URL and no shell takes for something else.
        password = secrets.token_urlsafe(32)
        acl = acl.replace(f"REPLACE_WITH_SHA256_OF_{name.upper()}_PASSWORD", hashlib.sha256(password.encode()).hexdigest())
        files[directory / f"{name}.env"] = (_environment(user, password, address), 0o600)
    files[directory / "compose.env"] = (_for_compose(), 0o600)
    # Redis runs as a user of its own and must read it; a hash of 256 random bits tells nothing.
    files[directory / "redis-acl.conf"] = (acl, 0o644)
    for path in files:
        if path.exists():
            raise FileExistsError(f"{path} is there already, and is left as it is")
    if not directory.is_dir():
        directory.mkdir(parents=True)
        # Whatever the umask left out: Redis must find its file.
        directory.chmod(0o755)
    for path, (text, mode) in files.items():
        _write_new(path, text, mode)
    return list(files)


def _environment(user: str, password: str, address: str) -> str:
    return f"CELERY_BROKER_URL=redis://{user}:{password}@{address}/0\nREDIS_USERNAME={user}\nREDIS_PASSWORD={password}\n"


def _for_compose() -> str:
    s3, flower = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
    return f"AWS_ACCESS_KEY_ID=s3tasks\nAWS_SECRET_ACCESS_KEY={s3}\nFLOWER_BASIC_AUTH=operator:{flower}\n"


def _write_new(path: Path, text: str, mode: int) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w", encoding="ascii") as file:
        file.write(text)
    # Whatever the umask left out.
    path.chmod(mode)


def main(arguments: list[str]) -> str | None:
    """Fills in for a person; what is wrong, or None."""
    if not 1 <= len(arguments) <= 2 or arguments[0].startswith("-"):
        return _USAGE
    address = arguments[1] if len(arguments) == 2 else "127.0.0.1"
    if not re.fullmatch(r"[A-Za-z0-9.-]+(:\d+)?", address):
        return f"{address!r} is no HOST or HOST:PORT"
    try:
        for path in fill_in(Path(arguments[0]), address if ":" in address else f"{address}:6379"):
            sys.stderr.write(f"written: {path}\n")
    except (OSError, ValueError) as problem:
        return str(problem)
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
