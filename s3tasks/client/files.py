"""The verbs between S3 and this machine's files.

It never lets a file appear under its name before all of it is there and has been checked.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from s3tasks.client.arguments import RefLike, truth
from s3tasks.client.caller import verb
from s3tasks.client.one import ObjectVerbs
from s3tasks.client.sending import Progress, Tally, callers_errors
from s3tasks.errors import LocalFileError
from s3tasks.files import arriving, outgoing
from s3tasks.reads import Query
from s3tasks.refs import ObjectRef
from s3tasks.writes import clear_uploads

Path = str | os.PathLike[str]


class FileVerbs(ObjectVerbs):
    """Upload and download files."""

    @verb
    def upload(
        self,
        path: Path,
        ref: RefLike,
        *,
        inside: str | None = None,
        if_match: str | None = None,
        if_none_match: bool = False,
        content_type: str | None = None,
        metadata: Mapping[str, str] | None = None,
        put_options: Mapping[str, Any] | None = None,
        progress: Progress | None = None,
        wait: float | None = None,
    ) -> ObjectRef:
        """Writes the file's bytes to the object, as `write` does with an open file, and returns the ref of exactly this write.

        With `inside`, the path must be relative and lead to a file below that directory, by no symbolic link. LocalFileError for a
        path that may not or cannot be read.
        """
        target = self._allowed(ref)
        with ExitStack() as held:
            try:
                stream = held.enter_context(outgoing(path, inside))
            except LocalFileError:
                # The file of an earlier delivery, which was killed, may be gone by now: its parts are not needed any more.
                rooms = self._rooms()
                clear_uploads(rooms.ledger, rooms.store, target.plain(), self._write_ids(target.plain()))
                raise
            return self.write(
                stream, target,
                if_match=if_match, if_none_match=if_none_match, content_type=content_type, metadata=metadata,
                put_options=put_options, progress=progress, wait=wait,
            )

    @verb
    def download(
        self,
        ref: RefLike,
        path: Path,
        *,
        inside: str | None = None,
        latest: bool = False,
        progress: Progress | None = None,
        wait: float | None = None,
    ) -> str:
        """Writes the object to the file, in parallel ranges of one verified version, and returns the path.

        The file appears under its name, in place of one that is there, only when all of it has arrived, has the object's length and
        its checksum (where the store gives a CRC-32, SHA-1 or SHA-256 of the whole), and is on disk; a failed download leaves
        nothing. `inside` is as for `upload`, the rest as for `read`; LocalFileError for a path that may not or cannot be written.
        """
        query = Query(self._allowed(ref), truth("latest", latest), with_body=False, with_checksum=True)
        self._patiently(query.ref, lambda: self._fetch(query, path, inside, progress), wait)
        return os.fspath(path)

    def _fetch(self, query: Query, path: Path, inside: str | None, progress: Progress | None) -> None:
        rooms = self._rooms()
        answer = rooms.reader.answer(query)
        if answer.head is None:
            raise ValueError("an answer that may be handed out serves an object")
        tally = Tally(progress, answer.head.served.size) if progress else None
        with arriving(path, inside) as file, callers_errors():
            rooms.store.download(query.ref, answer.head, answer.endpoint, file, tally)
