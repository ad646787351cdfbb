"""Errors reach the caller whole: through pickle, and through the JSON of Celery's result backend."""

from __future__ import annotations

import inspect
import json
import pickle
from typing import Any

import pytest
from celery import Celery
from celery.backends.base import Backend
from kombu.utils.json import dumps, loads

from s3tasks import errors
from s3tasks.errors import PreconditionFailed, RetryableError, S3TasksError

# For each class: every argument given, and only those that have to be.
SAMPLES: dict[str, tuple[tuple[Any, ...], tuple[Any, ...]]] = {
    "S3TasksError": (("what went wrong",), ()),
    "RetryableError": ((3, 1.5), (1, 0.0)),
    "PreconditionFailed": (("bucket", "kéy/ 1", "etag-a", "etag-b", 7, 12.345), ("bucket", "key")),
    "StaleRead": (("bucket", "kéy/ 1", "etag-a", "etag-b", 7, 12.345), ("bucket", "key")),
    "NotYetVisible": (("bucket", "kéy/ 1", "etag-a", None, 7, 12.345), ("bucket", "key")),
    "Superseded": (("bucket", "kéy/ 1", "etag-a", "etag-b", 7, 12.345), ("bucket", "key")),
    "NoSuchKey": (("bucket", "kéy/ 1"), ("bucket", "key")),
    "ObjectDeleted": (("bucket", "kéy/ 1"), ("bucket", "key")),
    "WriteConflict": (("bucket", "kéy/ 1", 'If-Match: "e"', "PreconditionFailed"), ("bucket", "key", "If-None-Match: *")),
    "OverlappingWrite": (("bucket", "kéy/ 1", 118.5, 7, 12.345), ("bucket", "key", 0.0)),
    "LedgerUnavailable": (("begin", "ConnectionError: refused", 7, 12.345), ("lookup", "TimeoutError")),
    "StoreUnavailable": (
        ("PutObject", "bucket", "kéy/ 1", "SlowDown: …", 503, 7, 12.345),
        ("GetObject", "bucket", "key", "broken"),
    ),
    "StoreError": (
        ("GetObject", "bucket", "kéy/ 1", "AccessDenied", 403, "request-1", "no"),
        ("GetObject", "bucket", "key", "NoCredentialsError"),
    ),
    "PayloadTooLarge": (("write", 262145, 262144), ("read", 2, 1)),
    "LocalFileError": (("../etc/passwd", "leads outside"), ("", "")),
    "InvalidRef": (("'bucket'", "it must begin with s3://"), ("", "")),
}

RETRYABLE = {
    "RetryableError", "PreconditionFailed", "StaleRead", "NotYetVisible",
    "OverlappingWrite", "LedgerUnavailable", "StoreUnavailable",
}


def tree(root: type[S3TasksError] = S3TasksError) -> list[type[S3TasksError]]:
    return [root, *(found for child in root.__subclasses__() for found in tree(child))]


# Other test modules may derive errors of their own; the package's are all in one module.
CLASSES = [found for found in tree() if found.__module__ == errors.__name__]
EXAMPLES = [
    pytest.param(found(*arguments), id=f"{found.__name__}{len(arguments)}")
    for found in CLASSES
    for arguments in SAMPLES.get(found.__name__, ())
]
WAITED_FOR = [pytest.param(example.values[0], id=str(example.id)) for example in EXAMPLES if hasattr(example.values[0], "attempts")]


@pytest.fixture(scope="module")
def backend() -> Backend:
    return Backend(app=Celery("errors", set_as_current=False))


def through_celery(error: S3TasksError, backend: Backend) -> Any:
    """What a caller's `result.get()` raises for an error that a worker raised, by Celery's own code."""
    stored = dumps({"result": backend.prepare_exception(error, serializer="json")})  # type: ignore[no-untyped-call]
    return backend.exception_to_python(loads(stored)["result"])  # type: ignore[no-untyped-call]


def assert_same(found: Any, error: S3TasksError) -> None:
    assert type(found) is type(error)
    assert found.args == error.args
    assert [type(argument) for argument in found.args] == [type(argument) for argument in error.args]
    assert vars(found) == vars(error)
    assert str(found) == str(error)


def test_every_error_class_has_a_sample_here() -> None:
    assert {found.__name__ for found in CLASSES} == set(SAMPLES)


def test_no_error_class_of_the_package_is_defined_outside_the_tree_module() -> None:
    elsewhere = [found for found in tree() if found.__module__.startswith("s3tasks.") and found not in CLASSES]

    assert elsewhere == []


@pytest.mark.parametrize("error", EXAMPLES)
def test_an_error_survives_pickle_whole(error: S3TasksError) -> None:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert_same(pickle.loads(pickle.dumps(error, protocol)), error)


@pytest.mark.parametrize("error", EXAMPLES)
def test_an_error_survives_the_json_result_backend_whole(error: S3TasksError, backend: Backend) -> None:
    assert_same(through_celery(error, backend), error)


@pytest.mark.parametrize("error", EXAMPLES)
def test_the_arguments_are_json_primitives(error: S3TasksError) -> None:
    assert json.loads(json.dumps(error.args)) == list(error.args)
    assert all(argument is None or type(argument) in (str, int, float, bool) for argument in error.args)


@pytest.mark.parametrize("error", EXAMPLES)
def test_each_argument_is_a_field_of_its_own_name(error: S3TasksError) -> None:
    constructor = inspect.signature(type(error).__init__)
    names = [name for name, given in constructor.parameters.items() if given.kind is given.POSITIONAL_OR_KEYWORD and name != "self"]
    if not names:  # the two roots take whatever they are given
        assert type(error) in (S3TasksError, RetryableError)
        return

    assert [getattr(error, name) for name in names] == list(error.args)


@pytest.mark.parametrize("error", WAITED_FOR)
def test_after_changes_only_attempts_and_waited_seconds(error: RetryableError) -> None:
    told = error.after(41, 2.00049)

    assert type(told) is type(error)
    assert told.args == (*error.args[:-2], 41, 2.0)
    assert (told.attempts, told.waited_seconds) == (41, 2.0)
    kept = vars(error).keys() - {"attempts", "waited_seconds"}
    assert {name: getattr(told, name) for name in kept} == {name: getattr(error, name) for name in kept}


@pytest.mark.parametrize("error", WAITED_FOR)
def test_an_error_that_was_waited_for_says_how_often_and_how_long(error: RetryableError) -> None:
    assert "tried 41 times over 2.0 s" in str(error.after(41, 2.0))
    assert "tried" not in str(error.after(1, 0.0))


@pytest.mark.parametrize("error", WAITED_FOR)
def test_what_waiting_has_cost_survives_the_json_result_backend(error: RetryableError, backend: Backend) -> None:
    told = error.after(41, 2.5)

    assert_same(through_celery(told, backend), told)


def test_every_retryable_error_that_can_be_raised_tells_what_waiting_has_cost() -> None:
    retryable = {found.__name__ for found in CLASSES if issubclass(found, RetryableError)} - {"RetryableError"}

    assert {type(example.values[0]).__name__ for example in WAITED_FOR} == retryable


@pytest.mark.parametrize("found", CLASSES)
def test_retryable_is_what_is_written_here(found: type[S3TasksError]) -> None:
    assert found.retryable is (found.__name__ in RETRYABLE)


def tree_as_drawn() -> dict[str, tuple[str, str]]:
    """The tree of the module's docstring: for each class its parent and its description."""
    drawn: dict[str, tuple[str, str]] = {}
    path = ["S3TasksError"]
    for line in (errors.__doc__ or "").splitlines():
        branch, dashes, text = line.partition("── ")
        if dashes:
            name, _, description = text.partition(" ")
            depth = (len(branch.strip("\n")) - len("    ├")) // 4 + 1
            path[depth:] = [name]
            drawn[name] = (path[depth - 1], description.strip())
    return drawn


def test_the_tree_drawn_in_the_module_is_the_tree_in_the_code() -> None:
    # RetryableError is a way to write the classes down, not a thing to catch: the drawing passes over it.
    parents = {
        found.__name__: "S3TasksError" if found.__base__ is RetryableError else found.__base__.__name__
        for found in CLASSES
        if found not in (S3TasksError, RetryableError) and found.__base__
    }

    assert {name: parent for name, (parent, _) in tree_as_drawn().items()} == parents


@pytest.mark.parametrize(("name", "described"), [(name, text) for name, (_, text) in tree_as_drawn().items()])
def test_retryable_is_what_the_drawn_tree_says(name: str, described: str) -> None:
    is_family = name == "PreconditionFailed"
    said = described.endswith(": retried")

    assert getattr(errors, name).retryable is (said or is_family)


def test_one_except_clause_catches_every_broken_promise() -> None:
    family = {found.__name__ for found in tree(PreconditionFailed)}

    assert family == {"PreconditionFailed", "StaleRead", "NotYetVisible", "Superseded"}


def test_a_deleted_object_is_a_missing_key() -> None:
    assert issubclass(errors.ObjectDeleted, errors.NoSuchKey)


@pytest.mark.parametrize("error", [example for example in EXAMPLES if hasattr(example.values[0], "bucket")])
def test_every_error_about_an_object_names_it(error: Any) -> None:
    assert f"s3://{error.bucket}/{error.key}" in str(error)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (errors.StaleRead("b", "k", "etag-a", "etag-b"), ["stale", "expected etag-a", "found etag-b"]),
        (errors.NotYetVisible("b", "k", "etag-a"), ["not visible yet", "expected etag-a", "found nothing"]),
        (errors.Superseded("b", "k", "etag-a", "etag-b"), ["replaced by a newer one", "expected etag-a"]),
        (errors.PreconditionFailed("b", "k"), ["expected a known write", "found nothing"]),
        (errors.NoSuchKey("b", "k"), ["no such key"]),
        (errors.ObjectDeleted("b", "k"), ["has been deleted"]),
        (errors.WriteConflict("b", "k", 'If-Match: "e"', "NoSuchKey"), ['If-Match: "e" does not hold', "NoSuchKey"]),
        (errors.OverlappingWrite("b", "k", 118.5), ["another write is under way", "118.5 s"]),
        (errors.LedgerUnavailable("begin", "refused"), ["Redis", "begin", "refused"]),
        (errors.StoreUnavailable("PutObject", "b", "k", "SlowDown", 503), ["PutObject", "503", "SlowDown"]),
        (errors.StoreUnavailable("PutObject", "b", "k", "no answer"), ["PutObject", "no answer"]),
        (
            errors.StoreError("GetObject", "b", "k", "AccessDenied", 403, "request-1", "not yours"),
            ["GetObject", "AccessDenied", "403", "request-1", "not yours"],
        ),
        (errors.PayloadTooLarge("write", 300, 200), ["300 bytes", "max_inline_bytes is 200", "in process", "pass the ref on"]),
        (errors.InvalidRef("'x'", "it must begin with s3://"), ["'x'", "it must begin with s3://"]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_the_text_of_an_error_says_what_was_found_and_the_way_out(error: S3TasksError, words: list[str]) -> None:
    assert [word for word in words if word not in str(error)] == []


def test_the_texts_without_a_status_do_not_speak_of_one() -> None:
    assert "HTTP" not in str(errors.StoreUnavailable("PutObject", "b", "k", "no answer"))
    assert "None" not in str(errors.StoreError("GetObject", "b", "k", "NoCredentialsError"))
