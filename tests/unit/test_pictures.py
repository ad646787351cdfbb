"""Arguments as events, logs and Flower show them."""

from __future__ import annotations

from typing import Any

import pytest

from s3tasks import verbs
from s3tasks.pictures import args_picture, kwargs_picture

REF = {"bucket": "b", "key": "k", "etag": "e1", "seq": 7, "size": 3}


@pytest.mark.parametrize(
    ("verb", "args", "picture"),
    [
        (verbs.write, (b"secret", "s3://b/k"), "(<6 bytes>, 's3://b/k')"),
        (verbs.write, ("secret", REF), "(<6 characters>, 's3://b/k')"),
        (verbs.read, (REF,), "('s3://b/k',)"),
        (verbs.read, ({"bucket": "b", "key": "a\nb"},), r"('s3://b/a\\nb',)"),
        (verbs.write_many, ([["secret", "s3://b/k"], {"body": "secret", "ref": REF}],), "(<2 items>,)"),
        (verbs.read_many, ([REF, "s3://b/2", {"ref": REF, "value": b"secret"}, REF, REF],),
         "(['s3://b/k', 's3://b/2', 's3://b/k', … 2 more],)"),
        (None, (17, None, True, 1.5, b"secret", "text"), "(17, None, True, 1.5, <6 bytes>, 'text')"),
        (None, ("x" * 1000,), f"('{'x' * 100}…',)"),
        (None, ({"password": "secret"}, {"s"}), "(<password>, <set>)"),
        (None, (10**1000,), f"({'1' + '0' * 99}…,)"),
        (None, (), "()"),
    ],
)  # fmt: skip
def test_refs_are_shown_and_bodies_are_not(verb: Any, args: tuple[Any, ...], picture: str) -> None:
    assert args_picture(args, verb) == picture


def test_by_name_it_is_the_same() -> None:
    kwargs = {"body": "secret", "ref": "s3://b/k", "metadata": {"token": "secret"}, "done": [{"ref": REF, "value": b"secret"}]}

    assert kwargs_picture(kwargs, verbs.write) == (
        "{'body': <6 characters>, 'ref': 's3://b/k', 'metadata': <token>, 'done': <1 items>}"
    )
    assert kwargs_picture({"items": [("secret", "s3://b/k")]}, verbs.write_many) == "{'items': <1 items>}"
    assert kwargs_picture({}) == "{}"
