"""The program of an embedded S3 server: `python -m s3tasks.sandbox.s3_server primary|replica`.

It never runs inside the process that uses it, for moto keeps its objects in globals. It says one line on standard
output, `{"port": N}` once it listens, and never listens on anything but 127.0.0.1.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys

from s3tasks.sandbox.http_server import listening_server
from s3tasks.sandbox.lag import LagQueue
from s3tasks.sandbox.moto_store import MotoStore
from s3tasks.sandbox.replica import Replica
from s3tasks.sandbox.replication import Primary, checked_lag


def main(arguments: list[str]) -> None:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser(prog="s3tasks.sandbox.s3_server")
    parser.add_argument("role", choices=["primary", "replica"])
    parser.add_argument("--lag-seconds", type=float, nargs=2, default=(0.1, 2.0))
    parser.add_argument("--seed", type=int)
    options = parser.parse_args(arguments)
    _quieten()
    if options.role == "replica":
        server = listening_server(Replica(MotoStore()))
    else:
        server = listening_server(Primary(MotoStore(), LagQueue(checked_lag(*options.lag_seconds), options.seed)))
    sys.stdout.write(json.dumps({"port": server.port}) + "\n")
    sys.stdout.flush()
    server.serve_forever()


def _quieten() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    for name in ("werkzeug", "moto", "botocore"):
        logging.getLogger(name).setLevel(logging.ERROR)


if __name__ == "__main__":
    main(sys.argv[1:])
