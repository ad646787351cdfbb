"""The Dockerfile carried out without an engine: each stage in a directory of its own, every RUN line as it stands, its worker run.

Needs root, for mounts in a namespace of its own: `unshare --mount python -m tests.deploy.image_build PREFIX`, where PREFIX has the
Python that the base image has in /usr/local. It never touches the machine's own /opt and /usr/local: it mounts over them.

The image is then run as Kubernetes runs it: as its numbered user without any right, on a root mounted read-only, with a /tmp.
"""

from __future__ import annotations

import contextlib
import fnmatch
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from celery import Celery, chain

from s3tasks import S3Tasks, Settings
from s3tasks.sandbox import Sandbox
from s3tasks.sandbox.processes import Child, Guardian, wait_until
from tests.conftest import REPOSITORY
from tests.deploy.files import DOCKERFILE, Instruction, dockerfile_instructions

BASE = "python:3.13-slim-bookworm"
PATIENCE_SECONDS = 60.0


@dataclass
class Stage:
    """What a stage has come to: the directory that is its /opt, and what its instructions have set."""

    opt: Path
    environment: dict[str, str] = field(default_factory=lambda: {"PATH": "/usr/local/bin:/usr/bin:/bin"})
    workdir: str = "/"
    user: str = "0:0"
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    check: list[str] = field(default_factory=list)

    def outside(self, path: str) -> Path:
        """Where a path of the stage is while it is not mounted."""
        absolute = os.path.normpath(f"{self.workdir}/{path}" if not path.startswith("/") else path)
        if absolute != "/opt" and not absolute.startswith("/opt/"):
            raise ValueError(f"{absolute}: this builder knows /opt only")
        return self.opt / os.path.relpath(absolute, "/opt")


class Builder:
    """Carries instructions out. `context` is the repository as the ignore file leaves it."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self.stages: dict[str, Stage] = {}
        self._context = scratch / "context"
        shutil.copytree(REPOSITORY, self._context, ignore=self._ignored, symlinks=True)

    @staticmethod
    def _ignored(directory: str, names: list[str]) -> set[str]:
        lines = DOCKERFILE.with_name("Dockerfile.dockerignore").read_text().splitlines()
        kept = {line[1:] for line in lines if line.startswith("!")}
        everywhere = [line.removeprefix("**/") for line in lines if line.startswith("**/")]
        if [line for line in lines if line and line[0] not in "#!*"]:
            raise ValueError("the ignore file has a line that this builder does not know")
        top = Path(directory) == REPOSITORY
        return {name for name in names if (top and name not in kept) or any(fnmatch.fnmatch(name, each) for each in everywhere)}

    def carry_out(self, instruction: Instruction) -> None:
        """One instruction."""
        if instruction.name == "FROM":
            self._begin(*instruction.text.split(" AS "))
            return
        stage = self.stages[instruction.stage]
        simple = {"WORKDIR": "workdir", "USER": "user"}
        lists = {"ENTRYPOINT": "entrypoint", "CMD": "command"}
        if instruction.name in simple:
            setattr(stage, simple[instruction.name], instruction.text)
        elif instruction.name in lists:
            setattr(stage, lists[instruction.name], instruction.words())
        elif instruction.name == "HEALTHCHECK":
            stage.check = Instruction("", "CMD", instruction.text.partition("CMD ")[2]).words()
        else:
            self._change(stage, instruction)

    def _change(self, stage: Stage, instruction: Instruction) -> None:
        if instruction.name == "ENV":
            pairs = (word.split("=", 1) for word in instruction.words())
            stage.environment.update({name: value.replace("$PATH", stage.environment["PATH"]) for name, value in pairs})
        elif instruction.name == "COPY":
            self._copy(stage, instruction.words())
        elif instruction.name == "RUN":
            self._run(stage, instruction.text)
        elif instruction.name != "EXPOSE":
            raise ValueError(f"this builder does not know {instruction.name}")

    def _begin(self, base: str, name: str) -> None:
        opt = self._scratch / name
        if base == BASE:
            opt.mkdir()
            self.stages[name] = Stage(opt)
            return
        old = self.stages[base]
        shutil.copytree(old.opt, opt, symlinks=True)
        self.stages[name] = Stage(
            opt, dict(old.environment), old.workdir, old.user, list(old.entrypoint), list(old.command), list(old.check)
        )

    def _copy(self, stage: Stage, words: list[str]) -> None:
        *sources, target = [word for word in words if not word.startswith("--from=")]
        others = [self.stages[word.removeprefix("--from=")] for word in words if word.startswith("--from=")]
        into = stage.outside(target)
        for pattern in sources:
            found = [other.outside(pattern) for other in others] or sorted(self._context.glob(pattern.removeprefix("./")))
            if not found:
                raise ValueError(f"COPY {pattern}: there is no such file in what is sent to the builder")
            for source in found:
                into.parent.mkdir(parents=True, exist_ok=True)
                if source.is_dir():
                    shutil.copytree(source, into, symlinks=True, dirs_exist_ok=True)
                else:
                    place = into / source.name if target.endswith("/") else into
                    place.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(source, place)

    def _run(self, stage: Stage, text: str) -> None:
        say(f"RUN {text}")
        stage.outside(".").mkdir(parents=True, exist_ok=True)
        # pip's own settings (an index, a cache) are the machine's.
        environment = {**os.environ, **stage.environment}
        with mounted(stage.opt):
            subprocess.run(["/bin/sh", "-c", text], cwd=stage.workdir, env=environment, check=True)


@contextlib.contextmanager
def mounted(opt: Path) -> Iterator[None]:
    """The stage's directory as /opt, for a while."""
    subprocess.run(["mount", "--bind", str(opt), "/opt"], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "/opt"], check=True)


class Container:
    """A stage's command in a mount namespace of its own, with nothing to write to but /tmp."""

    def __init__(self, stage: Stage, guardian: Guardian, log: Path, variables: Mapping[str, str]) -> None:
        self._stage = stage
        user, group = stage.user.split(":")
        self._drop = [
            "setpriv", "--reuid", user, "--regid", group, "--clear-groups", "--no-new-privs", "--bounding-set", "-all",
            "--inh-caps", "-all",
        ]
        # A Python that was built to lie elsewhere does not look for its library beside itself; the base image's does.
        self._environment = {**stage.environment, **variables, "LD_LIBRARY_PATH": "/usr/local/lib"}
        mounts = f"mount --bind {stage.opt} /opt && mount -t tmpfs tmpfs /tmp && mount -o remount,bind,ro /opt"
        mounts += " && mount -o remount,bind,ro / && cd " + shlex.quote(stage.workdir)
        inner = shlex.join([*self._drop, *stage.entrypoint, *stage.command])
        command = ["unshare", "--mount", "/bin/sh", "-c", f"{mounts} && exec {inner}"]
        self.child = Child(guardian, command, log, directory=Path("/"), environment=self._environment)

    def run(self, command: list[str]) -> int:
        """How a command ends inside, as the same user."""
        inner = f"cd {shlex.quote(self._stage.workdir)} && exec {shlex.join([*self._drop, *command])}"
        entered = ["nsenter", "--target", str(self.child.pid), "--mount", "/bin/sh", "-c", inner]
        return subprocess.run(entered, env=self._environment, stdout=subprocess.DEVNULL, check=False).returncode

    def healthy(self) -> bool:
        """What the image's health check says."""
        return self.child.running and self.run(self._stage.check) == 0


def say(text: str) -> None:
    """Tells whoever watches."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def require(condition: bool, what: str) -> None:
    """Ends all of it where something is not so."""
    if not condition:
        raise SystemExit(f"not so: {what}")
    say(f"ok: {what}")


def try_worker(stage: Stage, sandbox: Sandbox, log: Path) -> None:
    """The worker image: writes and reads for a producer, is healthy, writes nowhere else, ends on SIGTERM."""
    guardian = Guardian()
    container = Container(stage, guardian, log, sandbox.environment())
    try:
        wait_until(lambda: container.healthy() or not container.child.running, PATIENCE_SECONDS, 0.5)
        require(container.child.running, f"the worker runs\n{container.child.log_tail(3)}")
        require(container.healthy(), "its health check is content")
        sandbox.create_bucket("image")
        app = Celery("producer", broker=sandbox.redis_url, backend=sandbox.redis_url, set_as_current=False)
        s3 = S3Tasks(app, Settings(ledger_url=sandbox.redis_url, endpoint_url=sandbox.endpoint_url))
        result = chain(s3.write.s(b"from the image", "s3://image/key"), s3.read.s()).delay().get(timeout=PATIENCE_SECONDS)
        require(result == b"from the image", "it writes and reads")
        s3.client.close()
        app.close()
        require(container.run(["sh", "-c", "touch /opt/x || touch /usr/x || touch /var/x"]) != 0, "its root cannot be written to")
        require(container.run(["sh", "-c", "test $(id -u) = 10001"]) == 0, "it is nobody's number")
        # pymp- is the pool's own.
        written = container.run(["sh", "-c", "! ls -A /tmp | grep -v -e '^s3tasks-heartbeat$' -e '^pymp-'"])
        require(written == 0, "it has written its heartbeat and nothing else")
        container.child.signal(signal.SIGTERM)
        require(wait_until(lambda: not container.child.running, PATIENCE_SECONDS), "it ends on SIGTERM")
    finally:
        if container.child.running:
            container.child.kill()
        guardian.close()


def try_flower(stage: Stage, sandbox: Sandbox, log: Path) -> None:
    """The Flower image: answers its health check."""
    guardian = Guardian()
    container = Container(stage, guardian, log, {"CELERY_BROKER_URL": sandbox.redis_url, "FLOWER_BASIC_AUTH": "operator:secret"})
    try:
        wait_until(lambda: container.healthy() or not container.child.running, PATIENCE_SECONDS, 0.5)
        require(container.healthy(), f"Flower answers\n{container.child.log_tail(3)}")
    finally:
        container.child.kill()
        guardian.close()


def main(prefix: str) -> None:
    """Builds all stages, and runs the two that are images."""
    with tempfile.TemporaryDirectory(prefix="s3tasks-image-") as scratch, Sandbox(replica=False) as sandbox:
        # Its user has to find the way.
        Path(scratch).chmod(0o755)
        subprocess.run(["mount", "--bind", prefix, "/usr/local"], check=True)
        builder = Builder(Path(scratch))
        for instruction in dockerfile_instructions(DOCKERFILE.read_text()):
            builder.carry_out(instruction)
        try_worker(builder.stages["worker"], sandbox, Path(scratch) / "worker.log")
        try_flower(builder.stages["flower"], sandbox, Path(scratch) / "flower.log")


if __name__ == "__main__":
    main(sys.argv[1])
