"""The sandbox as a pytest fixture.

It never runs without pytest: nothing else in the package imports it.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from s3tasks.sandbox.stack import Sandbox


@pytest.fixture(scope="session")
def s3tasks_sandbox() -> Iterator[Sandbox]:
    """A started sandbox, shared by the whole test session: give each test a bucket of its own."""
    with Sandbox() as sandbox:
        yield sandbox
