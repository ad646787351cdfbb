"""Seeded schedules keep every promise; broken protocols do not. A longer run: python -m tests.faults.schedules --runs 1000000."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import REPOSITORY
from tests.faults.schedules import plan
from tests.faults.schedules.campaign import Tally, available_processes, campaign, explained, redis_socket
from tests.faults.schedules.checker import EXACT, ONCE, ORDER, READABLE, REF_READABLE, REPLACED, TURNS, violations
from tests.faults.schedules.families import FAMILIES, Family
from tests.faults.schedules.found import FOUND
from tests.faults.schedules.hunts import hunt
from tests.faults.schedules.protocols import MUTANTS, Order2014, Package, Runnable
from tests.faults.schedules.scheduler import draw, play
from tests.faults.schedules.wire import Wire

SCHEDULES_PER_FAMILY = 400

# Each is caught about five times as soon as this, or sooner.
CAUGHT_WITHIN = [
    ("drop the intent", "one by one", READABLE, 50),
    ("drop the intent", "overlapping", ONCE, 100),
    ("commit before S3", "one by one", READABLE, 50),
    ("commit before S3", "one by one", REF_READABLE, 200),
    ("skip observe", "one by one", READABLE, 50),
    ("hand out without observe", "one by one", READABLE, 50),
    ("forget the tombstone", "overlapping", REPLACED, 250),
    ("commit drops all", "overlapping", READABLE, 150),
    ("commit drops none", "one by one", REPLACED, 150),
    ("commit drops none", "overlapping", ORDER, 400),
    ("forget finished writes", "one by one", ONCE, 20),
    ("repeat replaced writes", "overlapping", ONCE, 100),
    ("do not take turns", "taking turns", TURNS, 20),
]


@pytest.fixture(scope="module")
def tallies() -> dict[str, Tally]:
    return campaign(SCHEDULES_PER_FAMILY * len(FAMILIES), 1, available_processes(), list(FAMILIES))


@pytest.fixture(scope="module")
def socket_path() -> Iterator[str]:
    with redis_socket() as path:
        yield path


@pytest.fixture
def wire(socket_path: str) -> Iterator[Wire]:
    made = Wire(socket_path)
    yield made
    made.close()


def on(wire: Wire, socket_path: str, family: Family, protocol: type[Package | Order2014] = Package) -> Runnable:
    return protocol(family.settings_for(f"unix://{socket_path}"), wire)


@pytest.mark.parametrize("name", FAMILIES)
def test_no_schedule_breaks_a_promise_of_its_family(name: str, tallies: dict[str, Tally]) -> None:
    tally = tallies[name]
    assert tally.schedules >= SCHEDULES_PER_FAMILY
    assert tally.reads > tally.schedules
    assert tally.failures(FAMILIES[name]) == 0, "\n\n".join(tally.told)


@pytest.mark.parametrize("fault", FOUND)
def test_a_fault_that_was_found_once_does_not_come_back(fault: str, wire: Wire, socket_path: str) -> None:
    schedule = FOUND[fault]
    family = FAMILIES[schedule.family]

    played = play(family, on(wire, socket_path, family), wire, schedule)

    assert [found for found in violations(played.history) if found.guarantee in family.asserts] == []


@pytest.mark.parametrize(("mutant", "name", "guarantee", "seeds"), CAUGHT_WITHIN)
def test_a_broken_protocol_is_caught_within_so_many_seeds(
    mutant: str, name: str, guarantee: str, seeds: int, wire: Wire, socket_path: str
) -> None:
    family = FAMILIES[name]

    assert hunt(family, on(wire, socket_path, family, MUTANTS[mutant]), wire, seeds, guarantee)


def test_the_readme_counts_the_families() -> None:
    assert f"in {len(FAMILIES)} families" in (REPOSITORY / "README.md").read_text()


def test_every_mutant_is_hunted() -> None:
    assert {mutant for mutant, *_ in CAUGHT_WITHIN} == set(MUTANTS)


@pytest.mark.parametrize(("name", "guarantee", "seeds"), [
    ("one by one", READABLE, 50), ("overlapping", READABLE, 100), ("one by one", ONCE, 20),
    ("redelivered early, deletes", EXACT, 400), ("one by one", REPLACED, 1500),
])  # fmt: skip
def test_the_order_of_2014_fails_on_the_same_schedules(
    name: str, guarantee: str, seeds: int, wire: Wire, socket_path: str
) -> None:
    family = FAMILIES[name]

    assert hunt(family, on(wire, socket_path, family, Order2014), wire, seeds, guarantee)


def test_the_order_of_2014_leaves_keys_unreadable_in_more_than_five_of_a_hundred_schedules(
    wire: Wire, socket_path: str
) -> None:
    family = FAMILIES["one by one"]
    protocol = on(wire, socket_path, family, Order2014)

    histories = [draw(family, protocol, wire, seed).history for seed in range(1, 401)]

    unreadable = sum(any(found.guarantee == READABLE for found in violations(history)) for history in histories)
    assert unreadable > 20


def test_a_failure_is_told_as_its_shortest_schedule(wire: Wire, socket_path: str) -> None:
    family = FAMILIES["one by one"]
    protocol = on(wire, socket_path, family, MUTANTS["drop the intent"])
    catch = hunt(family, protocol, wire, 50, READABLE)
    assert catch is not None

    text = explained(family, protocol, wire, catch.schedule, catch.violation)

    steps = [line for line in text.splitlines() if " operation " in line and " s " in line]
    # A write that has finished, and one whose process vanishes when S3 has taken it: five calls in all.
    assert len(steps) == 5, text
    assert "never heard of again: operation" in text
    assert "in the end the key reads: " in text


def test_a_seed_is_a_schedule_and_playing_it_again_is_the_same_history(wire: Wire, socket_path: str) -> None:
    for family in FAMILIES.values():
        protocol = on(wire, socket_path, family)
        for seed in range(20):
            first = draw(family, protocol, wire, seed)
            assert draw(family, protocol, wire, seed) == first
            assert play(family, protocol, wire, first.schedule) == first


class OnRedisPy(Package):
    """The package with the client that it has in production."""

    def __init__(self, settings: object, wire: Wire) -> None:
        super().__init__(settings, wire)  # type: ignore[arg-type]
        self.ledger = self.ledger_class(self.settings)


def test_the_wire_answers_as_redis_py_does(wire: Wire, socket_path: str) -> None:
    for family in FAMILIES.values():
        thin, real = on(wire, socket_path, family), OnRedisPy(family.settings_for(f"unix://{socket_path}"), wire)
        for seed in range(20):
            assert draw(family, real, wire, seed) == draw(family, thin, wire, seed)
        real.ledger.close()


def test_schedules_reach_every_call_and_every_fault(wire: Wire, socket_path: str) -> None:
    steps = set()
    for family in FAMILIES.values():
        protocol = on(wire, socket_path, family)
        for seed in range(40):
            steps |= {(step.action, step.fault) for step in draw(family, protocol, wire, seed).schedule.steps}

    assert {action for action, _ in steps} == {plan.GO, plan.OUTSIDE_PUT, plan.OUTSIDE_DELETE, plan.LAND, plan.FLUSH}
    assert {fault for _, fault in steps} == {"", plan.LOST, plan.FAILED, plan.LATE, plan.REFUSED}
