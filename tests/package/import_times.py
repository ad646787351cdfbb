"""What importing costs in CPU time, next to the libraries by themselves: medians of interleaved rounds, each in a new process.

`python -I tests/package/import_times.py`. Figures for people; that nothing is loaded which is not needed, tests hold.
"""

from __future__ import annotations

import statistics
import subprocess
import sys

ROUNDS = 9
IMPORTS = {
    "import s3tasks": "import s3tasks",
    "S3Tasks, for a producer": "from s3tasks import S3Tasks",
    "celery alone": "from celery import Celery, Task, signals",
    "ConsistentS3, without Celery": "from s3tasks import ConsistentS3",
    "boto3 and redis alone": "import boto3, s3transfer.manager, redis",
    "all, as in a worker": "from s3tasks import ConsistentS3, S3Tasks",
    "celery, boto3 and redis alone": "from celery import Celery, Task, signals; import boto3, s3transfer.manager, redis",
}


def seconds(statement: str) -> float:
    program = f"import time; began = time.process_time(); exec({statement!r}); print(time.process_time() - began)"
    return float(subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True).stdout)


if __name__ == "__main__":
    rounds = [{name: seconds(statement) for name, statement in IMPORTS.items()} for _ in range(ROUNDS)]
    for name in IMPORTS:
        sys.stdout.write(f"{name:32}{statistics.median(one[name] for one in rounds) * 1000:6.0f} ms of CPU\n")
