"""`s3tasks read`, `write` and `delete`: the verbs for a person, with files or `-` for stdin and stdout.

It never changes a byte on its way, and never leaves half a file under its name.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from s3tasks.cli.terminal import DONE, Surroundings, named, put_json, seconds

if TYPE_CHECKING:
    from s3tasks.client import ConsistentS3

_CHUNK_BYTES = 256 * 1024


def add_to(commands: Any) -> None:
    """Adds the commands."""
    read = commands.add_parser("read", help="an object's bytes, never stale", description=_READ)
    read.set_defaults(run=_read)
    read.add_argument("ref", metavar="OBJECT", help="s3://bucket/key, or what `write` printed: then exactly that write")
    read.add_argument("target", metavar="FILE", nargs="?", default="-", help="where to (default: -, stdout)")
    read.add_argument("--latest", action="store_true", help="take also what replaced the write that is named")
    write = commands.add_parser("write", help="write an object, and print its ref", description=_WRITE)
    write.set_defaults(run=_write)
    write.add_argument("source", metavar="FILE", help="what to write (-: stdin)")
    write.add_argument("ref", metavar="OBJECT", help="s3://bucket/key")
    write.add_argument("--content-type", metavar="TYPE", help="such as text/plain")
    write.add_argument("--if-none-match", action="store_true", help="only if nothing is there")
    delete = commands.add_parser("delete", help="delete an object, and print its ref", description=_DELETE)
    delete.set_defaults(run=_delete)
    delete.add_argument("ref", metavar="OBJECT", help="s3://bucket/key")
    for command in (read, write, delete):
        command.add_argument(
            "--wait", type=seconds, default=0.0, metavar="SECONDS",
            help="how long to wait until S3 serves what was promised, or for another write (default: 0)",
        )


_READ = "Prints the object, or writes it to a file. Status 3: S3 did not serve what was promised within --wait; 4: there is none."
_WRITE = "Writes the object through the ledger, so that no reader is served what was there before, and prints the ref as JSON."
_DELETE = "Deletes the object, and leaves a tombstone for readers whom S3 would serve it still. A missing object is no error."


@contextmanager
def _client(surroundings: Surroundings) -> Iterator[ConsistentS3]:
    from s3tasks.client import ConsistentS3

    client = ConsistentS3.from_settings(surroundings.settings())
    try:
        yield client
    finally:
        client.close()


def _read(options: argparse.Namespace, surroundings: Surroundings) -> int:
    with _client(surroundings) as client:
        if options.target != "-":
            client.download(named(options.ref), options.target, latest=options.latest, wait=options.wait)
            return DONE
        with client.open(named(options.ref), latest=options.latest, wait=options.wait) as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()
    return DONE


def _write(options: argparse.Namespace, surroundings: Surroundings) -> int:
    given = {"content_type": options.content_type, "if_none_match": options.if_none_match, "wait": options.wait}
    with _client(surroundings) as client:
        if options.source == "-":
            written = client.write(sys.stdin.buffer, named(options.ref), **given)
        else:
            written = client.upload(options.source, named(options.ref), **given)
    put_json(written.to_dict(), indent=None)
    return DONE


def _delete(options: argparse.Namespace, surroundings: Surroundings) -> int:
    with _client(surroundings) as client:
        put_json(client.delete(named(options.ref), wait=options.wait).to_dict(), indent=None)
    return DONE
