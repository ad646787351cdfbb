"""What starting costs: imports, a worker with these tasks against one with boto3 alone, and the command line's help.

It never measures in this process: everything is started anew for each figure.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence

from tests.benchmarks.figures import Figure
from tests.conftest import REPOSITORY

SUBJECT = "start up"
MOST_SECONDS_OF_HELP = 0.150
_PROLOGUE = "import resource, sys\n"
# The peak is Linux's own line for it: what getrusage says counts the process that this one was forked from.
_EPILOGUE = """
used = resource.getrusage(resource.RUSAGE_SELF)
peak = next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1]
print(used.ru_utime + used.ru_stime, int(peak) / 1024)
"""
_APP = "from celery import Celery\napp = Celery('shop', broker='redis://127.0.0.1:1/0', backend='redis://127.0.0.1:1/0')\n"
_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "benchmark", "AWS_SECRET_ACCESS_KEY": "benchmark", "AWS_DEFAULT_REGION": "us-east-1",
    "S3TASKS_ENDPOINT_URL": "http://127.0.0.1:1",
}
# What a worker's process has done when it takes its first task: the app is finalised, the client made.
PROGRAMS: Mapping[str, str] = {
    "nothing": "",
    "import s3tasks": "import s3tasks",
    "import s3tasks, all of its names": "from s3tasks import *",
    "import boto3": "import boto3",
    "worker's modules, boto3 alone": f"{_APP}import celery.bin.worker, celery.worker, kombu.transport.redis, boto3\n"
    "app.finalize()\nboto3.client('s3', endpoint_url='http://127.0.0.1:1')",
    "worker's modules, s3tasks": f"{_APP}import celery.bin.worker, celery.worker, kombu.transport.redis\n"
    "from s3tasks import S3Tasks\ns3 = S3Tasks(app)\napp.finalize()\ns3.client._rooms()",
    "s3tasks --help": "import runpy, contextlib, io\nsys.argv = ['s3tasks', '--help']\n"
    "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):\n"
    "    runpy.run_module('s3tasks.cli', run_name='__main__')",
}


def spent(program: str) -> tuple[float, float]:
    """Seconds of CPU and peak of resident memory in MiB of a fresh interpreter that runs the program."""
    command: Sequence[str] = [sys.executable, "-c", _PROLOGUE + program + _EPILOGUE]
    said = subprocess.run(
        command, cwd=REPOSITORY, env={**os.environ, **_ENVIRONMENT}, check=True, capture_output=True, text=True, timeout=120
    )
    cpu_seconds, peak_mib = said.stdout.split()[-2:]
    return float(cpu_seconds), float(peak_mib)


def measure(rounds: int) -> list[Figure]:
    """CPU seconds and memory of each program, medians of interleaved starts."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in PROGRAMS}
    for _ in range(rounds):
        for name, program in PROGRAMS.items():
            taken[name].append(spent(program))
    cpu = {name: statistics.median(seconds for seconds, _ in each) for name, each in taken.items()}
    memory = {name: statistics.median(peak for _, peak in each) for name, each in taken.items()}
    ours, plain = "worker's modules, s3tasks", "worker's modules, boto3 alone"
    return [
        *(
            Figure(SUBJECT, f"{name}: CPU", seconds, "s", MOST_SECONDS_OF_HELP if name == "s3tasks --help" else None)
            for name, seconds in cpu.items()
        ),
        *(Figure(SUBJECT, f"{name}: resident memory", peak, "MiB") for name, peak in memory.items()),
        Figure(SUBJECT, "worker with s3tasks / with boto3 alone: CPU", cpu[ours] / cpu[plain], "ratio"),
        Figure(SUBJECT, "worker with s3tasks / with boto3 alone: resident memory", memory[ours] / memory[plain], "ratio"),
    ]
