"""An object as a readable, seekable binary stream: fetched piece by piece, always of the one version it began with.

It never judges what is served: every time it asks anew, the reader does, and the stream goes on only with the very same object.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

from s3tasks.errors import StoreUnavailable, Superseded
from s3tasks.evidence import Served
from s3tasks.refs import ObjectRef
from s3tasks.store import Answer, ByteRange

Fetch = Callable[[ByteRange], Answer]
"""Asks for a range of the object the stream is of, and gives an answer that may be handed out."""

# After a seek little is asked for, and more each time that reading goes on from there: whoever jumps about pays for small pieces,
# whoever reads on soon gets large ones.
_FIRST_WINDOW_BYTES = 256 * 1024
_LARGEST_WINDOW_BYTES = 64 * 1024 * 1024


class ObjectStream(io.RawIOBase):
    """The raw stream; wrap it in io.BufferedReader.

    `opened` is the answer to a GET of the whole object, `fetch` asks for a range of it, `attempts` is how often in a row a broken
    answer is asked for again from where it broke. Raises Superseded where the object has been replaced, and what `fetch` raises.
    """

    def __init__(self, ref: ObjectRef, opened: Answer, fetch: Fetch, attempts: int) -> None:
        super().__init__()
        self._ref = ref
        if opened.served is None or opened.served.size is None or opened.body is None:
            raise ValueError("a stream needs an answer with a body of known size")
        self._served: Served = opened.served
        self._size_bytes: int = opened.served.size
        self._answer: Answer | None = opened
        self._fetch, self._attempts = fetch, attempts
        self._position = self._fetched_to = 0
        self._window_end = self._size_bytes
        self._window_bytes = _FIRST_WINDOW_BYTES

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is: what is asked for next begins where it was sought."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Where the next byte comes from; asks for nothing by itself."""
        self._check_open()
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size_bytes}.get(whence)
        if base is None or base + offset < 0:
            raise ValueError(f"cannot seek to {offset} from {whence}")
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        """The offset of the next byte."""
        self._check_open()
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fills the buffer with what comes next; 0 at the end."""
        self._check_open()
        view = memoryview(buffer).cast("B")
        if self._position >= self._size_bytes or not len(view):
            return 0
        piece = self._piece(len(view))
        view[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)

    def close(self) -> None:
        """Gives up what has not been read."""
        self._drop()
        super().close()

    def _piece(self, most_bytes: int) -> bytes:
        """The next bytes, asked for again from here where the answer broke off."""
        for attempts_left in reversed(range(self._attempts)):
            try:
                return self._next(most_bytes)
            except StoreUnavailable:  # noqa: PERF203 - a round trip to S3 costs more than a try
                self._drop()
                if not attempts_left:
                    raise
            except BaseException:
                # An interruption: what came with it is lost, and must not be skipped by whoever reads on.
                self._drop()
                raise
        raise ValueError("a stream needs one attempt at least")

    def _next(self, most_bytes: int) -> bytes:
        answer = self._current_answer()
        piece = answer.body.take(most_bytes) if answer.body else b""
        if not piece:
            ended = f"the stream ended at byte {self._position} of {self._size_bytes}"
            raise StoreUnavailable("GetObject", self._ref.bucket, self._ref.key, ended)
        self._fetched_to = self._position + len(piece)
        return piece

    def _current_answer(self) -> Answer:
        """The answer whose next byte is wanted, or a new one from there on."""
        goes_on = self._fetched_to == self._position
        at_end = self._position >= self._window_end
        if self._answer is not None and goes_on and not at_end:
            return self._answer
        if at_end or not goes_on:
            self._window_bytes = min(2 * self._window_bytes, _LARGEST_WINDOW_BYTES) if goes_on else _FIRST_WINDOW_BYTES
            self._window_end = min(self._position + self._window_bytes, self._size_bytes)
        self._drop()
        answer = self._fetch((self._position, self._window_end - 1))
        self._check_same(answer)
        self._answer, self._fetched_to = answer, self._position
        return answer

    def _check_same(self, answer: Answer) -> None:
        served = answer.served
        if served is not None and (served.etag, served.marker) == (self._served.etag, self._served.marker):
            return
        answer.close()
        raise Superseded(self._ref.bucket, self._ref.key, self._served.etag, served.etag if served else None)

    def _drop(self) -> None:
        answer, self._answer = self._answer, None
        if answer is not None:
            answer.close()

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed stream")
