"""Nothing is written down twice that could be rendered; names that others define exist with them."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import subprocess
import sys
from typing import Any

import botocore.session
import pytest
from botocore import xform_name
from celery.app.defaults import SETTING_KEYS

import s3tasks
from s3tasks import ConsistentS3, Settings, errors, store, verbs
from s3tasks.store import answers, clients, model, parts
from tests.house.written_once import (
    CELERY_MEANINGS,
    CELERYCONFIG,
    ENV_EXAMPLE,
    README,
    REPOSITORY,
    TABLES,
    as_text,
    celery_variables,
    env_example,
    errors_table,
    first_sentence,
    section,
    settings_table,
    verdict_table,
    with_section,
)
from tests.unit.verdict_rows import ROWS

# Names in celeryconfig.py that Celery passes over.
HELPERS = {"visibility_timeout_seconds", "heartbeat_file"}

CONFIG_TEXT = CELERYCONFIG.read_text()
CONFIG_LINES = CONFIG_TEXT.splitlines()
CONFIG_TREE = ast.parse(CONFIG_TEXT)


# --- the environment ---


def test_the_env_example_is_what_the_settings_say() -> None:
    assert ENV_EXAMPLE.read_text() == env_example(), "run python -m tests.house.written_once --write"


def test_the_module_prints_the_env_example() -> None:
    command = [sys.executable, "-m", "tests.house.written_once"]

    printed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout

    assert printed == env_example()


def variables_of(text: str) -> dict[str, str]:
    """What a shell or Docker would be given if every line were in force."""
    return dict(re.findall(r"^(?:# )?([A-Z][A-Z0-9_]+)=(.*)$", text, flags=re.MULTILINE))


def test_the_env_example_as_it_is_chooses_nothing() -> None:
    in_force = dict(re.findall(r"^([A-Z][A-Z0-9_]+)=(.*)$", ENV_EXAMPLE.read_text(), flags=re.MULTILINE))

    assert Settings.from_env(in_force) == Settings()
    assert all(name.startswith("S3TASKS_") for name in in_force)


def test_the_env_example_with_every_line_in_force_says_the_defaults() -> None:
    own = {name: text for name, text in variables_of(ENV_EXAMPLE.read_text()).items() if name.startswith("S3TASKS_")}

    assert len(own) == len(dataclasses.fields(Settings))
    assert Settings.from_env(own) == Settings()


def test_each_line_of_the_env_example_is_told_by_the_line_above() -> None:
    lines = ENV_EXAMPLE.read_text().splitlines()
    untold = [
        line for above, line in zip(["", *lines], lines, strict=False)
        if variables_of(line) and (not above.startswith("# ") or variables_of(above))
    ]

    assert untold == []


def test_every_variable_that_the_celery_configuration_reads_is_in_the_env_example() -> None:
    assert set(celery_variables()) == set(CELERY_MEANINGS)
    assert set(celery_variables()) <= set(variables_of(ENV_EXAMPLE.read_text()))


def test_the_celery_configuration_reads_the_environment_in_one_way_only() -> None:
    mentions = [node for node in ast.walk(CONFIG_TREE) if isinstance(node, ast.Attribute) and ast.unparse(node) == "os.environ"]

    assert len(mentions) == len(celery_variables())


@pytest.mark.parametrize(
    ("default", "text"),
    [(None, ""), ((), ""), (("a", "b"), "a,b"), (True, "true"), (False, "false"), (86400, "86400"), (5.0, "5"), (0.015, "0.015")],
)
def test_a_default_is_spelled_as_its_variable_would_be(default: Any, text: str) -> None:
    assert as_text(default) == text


# --- the README ---


@pytest.mark.parametrize("name", TABLES)
def test_a_table_of_the_readme_is_what_the_code_says(name: str) -> None:
    assert section(README.read_text(), name) == TABLES[name](), "run python -m tests.house.written_once --write"


def test_a_section_is_replaced_and_nothing_else() -> None:
    text = "before\n<!-- errors -->\nold\n<!-- /errors -->\nafter\n"

    changed = with_section(text, "errors", "new\n")

    assert changed == "before\n<!-- errors -->\nnew\n<!-- /errors -->\nafter\n"
    assert section(changed, "errors") == "new\n"


@pytest.mark.parametrize(
    "text",
    [
        "", "<!-- errors -->\n", "<!-- /errors -->", "<!-- /errors -->\n<!-- errors -->\n", "<!-- errors --><!-- /errors -->",
        "<!-- errors -->\n<!-- errors -->\n<!-- /errors -->", "<!-- settings -->\n<!-- /settings -->",
    ],
)
def test_a_readme_without_its_markers_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="errors"):
        section(text, "errors")
    with pytest.raises(ValueError, match="errors"):
        with_section(text, "errors", "new\n")


def cells_of(table: str) -> list[list[str]]:
    return [re.split(r"(?<!\\)\|", line)[1:-1] for line in table.splitlines()]


@pytest.mark.parametrize("name", TABLES)
def test_a_table_has_a_text_in_every_row_and_as_many_cells(name: str) -> None:
    cells = cells_of(TABLES[name]())

    assert len({len(row) for row in cells}) == 1
    assert all(row[0].strip() and row[-1].strip() for row in cells)


def test_the_settings_table_has_a_row_for_every_setting() -> None:
    names = [row[0].strip(" `") for row in cells_of(settings_table())[2:]]

    assert names == [field.name for field in dataclasses.fields(Settings)]


def test_the_verdict_table_has_a_row_for_every_case() -> None:
    assert len(cells_of(verdict_table())) == 2 + len(ROWS)


def test_the_errors_table_has_a_row_for_every_public_error_and_says_whether_it_is_retried() -> None:
    rows = {row[0].replace("&nbsp;", "").strip(" `"): row[1].strip() for row in cells_of(errors_table())[2:]}
    public = {name for name in s3tasks.__all__ if name in vars(errors)}

    assert rows.keys() == public
    assert {name for name, retried in rows.items() if retried == "yes"} == {
        "StaleRead", "NotYetVisible", "OverlappingWrite", "LedgerUnavailable", "StoreUnavailable",
    }
    assert {name for name, retried in rows.items() if retried == "some"} == {"S3TasksError", "PreconditionFailed"}


def test_the_first_sentence_ends_at_its_full_stop() -> None:
    class Told:
        """It is so, in s3tasks.errors and
        elsewhere. More of it.

        And more.
        """

    assert first_sentence(Told) == "It is so, in s3tasks.errors and elsewhere"


# --- Celery's settings ---


ASSIGNED = [node for node in CONFIG_TREE.body if isinstance(node, ast.Assign)]
CONFIGURED = {ast.unparse(node.targets[0]): node for node in ASSIGNED}
Line = ast.stmt | ast.expr


def is_told(node: Line, group: dict[int, Line]) -> bool:
    """Whether a comment stands above the line, or above an unbroken run of one-line neighbours that it belongs to.

    `group` has the neighbours by the line they end in.
    """
    above = CONFIG_LINES[node.lineno - 2].strip()
    if above.startswith("#"):
        return True
    neighbour = group.get(node.lineno - 1)
    return neighbour is not None and neighbour.lineno == neighbour.end_lineno and is_told(neighbour, group)


def is_told_inside(node: ast.Assign) -> bool:
    """Whether the lines of a dict of more than one line are each told."""
    if not isinstance(node.value, ast.Dict) or node.value.lineno == node.value.end_lineno:
        return False
    entries: dict[int, Line] = {value.end_lineno or 0: value for value in node.value.values}
    return all(is_told(value, entries) for value in entries.values())


@pytest.mark.parametrize("name", sorted(CONFIGURED.keys() - HELPERS))
def test_every_setting_of_the_worker_is_one_that_celery_has(name: str) -> None:
    assert name in SETTING_KEYS


@pytest.mark.parametrize("name", sorted(CONFIGURED.keys() - HELPERS))
def test_every_setting_of_the_worker_has_its_reason(name: str) -> None:
    node = CONFIGURED[name]
    neighbours: dict[int, Line] = {other.end_lineno or 0: other for other in ASSIGNED}

    assert is_told(node, neighbours) or is_told_inside(node)


def test_the_celery_configuration_holds_settings_only() -> None:
    others = [type(node) for node in CONFIG_TREE.body if not isinstance(node, ast.Assign)]

    assert others == [ast.Expr, ast.Import]  # its docstring and os


# --- S3's names ---

SERVICE = botocore.session.get_session().get_service_model("s3")
STORE_TREES = [ast.parse(path.read_text()) for path in sorted((REPOSITORY / "s3tasks" / "store").glob("*.py"))]
WRITES = ("PutObject", "CopyObject", "CompleteMultipartUpload")


def members(operation: str, shape: str) -> set[str]:
    return set(getattr(SERVICE.operation_model(operation), shape).members)


def function_of(name: str) -> ast.FunctionDef:
    nodes = [node for tree in STORE_TREES for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == name]
    assert len(nodes) == 1
    return nodes[0]


def names_taken(function: ast.AST) -> set[str]:
    """Fields of an answer that the function reads with `said.get("…")`."""
    calls = [node for node in ast.walk(function) if isinstance(node, ast.Call) and ast.unparse(node.func) == "said.get"]
    return {str(call.args[0].value) for call in calls if isinstance(call.args[0], ast.Constant)}


def test_the_parameters_that_are_ours_are_parameters_of_the_operations_that_write() -> None:
    known = set().union(*(members(operation, "input_shape") for operation in ("PutObject", "CopyObject")))

    assert known >= model._OURS | model._OURS_ALONE


@pytest.mark.parametrize("operation", [*WRITES, "DeleteObject"])
def test_a_condition_is_sent_to_operations_that_have_it(operation: str) -> None:
    sendable = store.Condition(if_match="e").parameters()
    sendable |= store.Condition(if_none_match=operation != "DeleteObject").parameters()

    assert sendable.keys() <= members(operation, "input_shape")


@pytest.mark.parametrize("function", ["head_of", "served_of"])
def test_every_field_that_is_taken_from_an_answer_is_one_that_s3_gives(function: str) -> None:
    taken = names_taken(function_of(function))

    assert taken
    assert taken <= members("GetObject", "output_shape") | members("HeadObject", "output_shape")


def test_what_a_copy_takes_over_is_given_by_a_head_and_taken_by_a_copy_of_either_kind() -> None:
    kept = set(answers.SYSTEM_METADATA)

    assert kept <= members("HeadObject", "output_shape")
    assert kept <= members("CopyObject", "input_shape") & members("CreateMultipartUpload", "input_shape")


def test_the_methods_for_parts_are_botocores_names_of_the_operations() -> None:
    assert {operation: xform_name(operation) for operation in parts._METHODS} == parts._METHODS


@pytest.mark.parametrize("operation", WRITES)
def test_what_every_call_carries_is_known_to_the_operations_that_need_it(operation: str) -> None:
    settings = Settings(expected_bucket_owner="1" * 12, requester_pays=True, sse_customer_key="A" * 43 + "=")

    carried = model.known_to(operation, clients._carried(settings))

    assert carried.keys() >= {"ExpectedBucketOwner", "RequestPayer", "SSECustomerKey", "SSECustomerAlgorithm"}


# --- the verbs ---

# A worker has its own: how long it waits and how much it takes are settings, and Celery shows progress.
OF_THE_CALLING_PROCESS = {"self", "wait", "progress", "inside", "limit_bytes", "total_limit_bytes"}


def shape(verb: Any) -> list[tuple[str, Any, Any]]:
    parameters = inspect.signature(verb).parameters.values()
    return [(one.name, one.kind, one.default) for one in parameters if one.name not in OF_THE_CALLING_PROCESS]


VERBS = [
    each for name, each in vars(verbs).items()
    if inspect.isfunction(each) and not name.startswith("_") and "self" in inspect.signature(each).parameters
]


def test_every_task_is_compared() -> None:
    assert {verb.__name__ for verb in VERBS} == {
        "write", "read", "head", "delete", "copy", "upload", "download", "wait_visible",
        "write_many", "read_many", "head_many", "delete_many",
    }


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.__name__)
def test_a_task_takes_what_the_client_takes(verb: Any) -> None:
    assert shape(verb) == shape(getattr(ConsistentS3, verb.__name__))
