"""When a reader in this process looks again, on a real ledger and a replica that gets what it is told to get."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import redis

from s3tasks import ConsistentS3, NotYetVisible, ObjectRef, Settings, StaleRead, StoreUnavailable, events
from s3tasks.evidence import Awaited
from s3tasks.lags import weights_of
from s3tasks.ledger import Ledger
from s3tasks.patience import Patience, Watch
from s3tasks.refs import lags_key
from s3tasks.sandbox import Sandbox
from s3tasks.waiting import gap_seconds

REF = ObjectRef("bucket", "key")
HOUR = 3600


@pytest.fixture
def raw(sandbox: Sandbox, closing: Callable[[Any], Any]) -> redis.Redis:
    return closing(redis.Redis.from_url(sandbox.redis_url))  # type: ignore[no-any-return]


def committed_ago(raw: redis.Redis, seconds: float) -> int:
    whole, part = raw.time()
    return int(whole) * 1_000_000 + int(part) - int(seconds * 1_000_000)


def late(committed: int | None, bucket: str = "bucket") -> StaleRead:
    problem = StaleRead(bucket, "key", "a", "b")
    problem.committed = committed
    return problem


@dataclass
class Asked:
    """A ledger that counts what it is asked."""

    ledger: Ledger
    said: list[str] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        self.said.append(name)
        return getattr(self.ledger, name)


@pytest.fixture
def asked(ledger: Ledger) -> Asked:
    return Asked(ledger)


@pytest.fixture
def patience(asked: Asked, settings: Settings) -> Patience:
    return Patience(asked, settings)  # type: ignore[arg-type]


def teach(ledger: Ledger, settings: Settings, raw: redis.Redis, lag: float, count: int = 12) -> None:
    for number in range(count):
        ledger.note_seen(str(settings.endpoint_url), "bucket", committed_ago(raw, lag) - number, 0.0, lag * 0.97)


def test_a_lag_that_was_learnt_is_waited_out_in_one_gap(
    ledger: Ledger, patience: Patience, settings: Settings, raw: redis.Redis
) -> None:
    teach(ledger, settings, raw, 2.0)

    gap = patience.gap_seconds(late(committed_ago(raw, 1.5)), 3, 1.4)

    assert 0.3 < gap < 0.8


def test_of_a_lag_that_is_longer_than_those_learnt_no_more_is_known_than_at_first(
    ledger: Ledger, patience: Patience, settings: Settings, raw: redis.Redis
) -> None:
    teach(ledger, settings, raw, 0.2)

    gaps = [patience.gap_seconds(late(committed_ago(raw, 100)), 3, 1.0) for _ in range(20)]

    # t = c·n² at an age of 100 s.
    assert all(5.0 < gap < 6.5 for gap in gaps)
    assert len(set(gaps)) > 1


@pytest.mark.parametrize(
    "problem",
    [late(None), late(2**62), late(10**18), StoreUnavailable("GetObject", "b", "k", "x"), late(1, "other")],
    ids=["no number", "from the future", "no time", "another error", "another bucket"],
)
def test_where_nothing_can_be_known_probes_come_at_the_squares(
    ledger: Ledger, patience: Patience, settings: Settings, raw: redis.Redis, problem: StaleRead
) -> None:
    teach(ledger, settings, raw, 2.0)
    least = settings.probe_spacing_seconds * (2 * 4 + 1)

    assert least <= patience.gap_seconds(problem, 3, 16 * settings.probe_spacing_seconds) <= 1.25 * least


def test_no_gap_is_longer_than_the_limit(ledger: Ledger, asked: Asked, settings: Settings, raw: redis.Redis) -> None:
    patience = Patience(asked, settings.replace(probe_gap_limit_seconds=0.1))  # type: ignore[arg-type]
    teach(ledger, settings, raw, 2.0)

    assert patience.gap_seconds(late(committed_ago(raw, 1.0)), 3, 1.0) == 0.1
    assert patience.gap_seconds(late(committed_ago(raw, HOUR)), 3, 1.0) == 0.1


def test_the_square_schedule_takes_no_notice_of_what_was_learnt(
    ledger: Ledger, asked: Asked, settings: Settings, raw: redis.Redis
) -> None:
    teach(ledger, settings, raw, 2.0)
    patience = Patience(asked, settings.replace(probe_schedule="square"))  # type: ignore[arg-type]

    assert patience.gap_seconds(late(committed_ago(raw, 1.0)), 1, 0.0) <= 1.25 * settings.probe_spacing_seconds
    assert asked.said == []


def test_the_ledger_is_asked_once_however_many_wait(asked: Asked, patience: Patience, raw: redis.Redis) -> None:
    for _ in range(50):
        patience.gap_seconds(late(committed_ago(raw, 1.0)), 1, 0.0)

    # Once a second at most.
    assert 1 <= asked.said.count("lags") < 25


def test_a_read_that_need_not_wait_asks_nothing(asked: Asked, patience: Patience) -> None:
    assert Watch(patience, REF, None).probing(lambda: "body")() == "body"
    assert Watch(patience, REF, Awaited("s3://bucket/another", 1, 0.5, 1)).probing(lambda: "body")() == "body"
    assert asked.said == []


def test_readers_that_wait_for_one_write_do_not_probe_in_the_same_instant(
    ledger: Ledger, patience: Patience, settings: Settings, raw: redis.Redis
) -> None:
    teach(ledger, settings, raw, 2.0)
    problem = late(committed_ago(raw, 0.01))

    gaps = sorted(patience.gap_seconds(problem, 3, 0.0) for _ in range(500))

    assert len(set(gaps)) > 450
    assert gaps[-1] - gaps[0] > 0.02


@pytest.fixture
def told(request: pytest.FixtureRequest) -> Iterator[list[float]]:
    seconds: list[float] = []
    stop = events.listen(lambda event: seconds.append(event.seconds) if isinstance(event, events.FirstFresh) else None)
    yield seconds
    stop()


class Turns:
    """Not visible so many times, and then it is."""

    def __init__(self, committed: int, times: int) -> None:
        self.committed, self.left = committed, times

    def __call__(self) -> str:
        self.left -= 1
        if self.left >= 0:
            raise late(self.committed)
        return "body"


@pytest.mark.parametrize("schedule", ["learn", "square"])
def test_the_first_fresh_read_after_waiting_is_learnt_from_and_told_to_those_who_listen(
    ledger: Ledger, settings: Settings, raw: redis.Redis, told: list[float], schedule: str
) -> None:
    watch = Watch(Patience(ledger, settings.replace(probe_schedule=schedule)), REF, None)
    probe = watch.probing(Turns(committed_ago(raw, 5.0), 2))
    for waited in (0.0, 0.1):
        with pytest.raises(StaleRead) as caught:
            probe()
        watch.gap_seconds(caught.value, waited)

    assert probe() == "body"

    assert sum(weights_of(ledger.lags(str(settings.endpoint_url), "bucket")[1]).values()) == pytest.approx(1, abs=0.01)
    assert [5.0 <= seconds < HOUR for seconds in told] == [True]


def test_what_an_earlier_delivery_has_waited_for_is_learnt_by_the_one_that_finds_it(
    ledger: Ledger, patience: Patience, settings: Settings, raw: redis.Redis, told: list[float]
) -> None:
    earlier = Awaited(REF.uri, committed_ago(raw, 5.0), 4.5, 3)

    Watch(patience, REF, earlier).probing(lambda: "body")()

    assert len(told) == 1
    assert weights_of(ledger.lags(str(settings.endpoint_url), "bucket")[1])


def test_without_the_ledger_nothing_is_learnt_and_the_read_goes_on(
    settings: Settings, caplog: pytest.LogCaptureFixture, closing: Callable[[Any], Any]
) -> None:
    away = closing(Ledger(settings.replace(ledger_url="redis://127.0.0.1:1/0", ledger_timeout_seconds=0.2)))
    patience = Patience(away, settings)

    with caplog.at_level(logging.WARNING):
        assert Watch(patience, REF, Awaited(REF.uri, 1, 0.5, 1)).probing(lambda: "body")() == "body"
        assert patience.gap_seconds(late(1), 1, 0.0) <= 1.25 * settings.probe_spacing_seconds
        assert patience.awaited(late(1), 1) is None
    assert "not learnt" in caplog.text


@pytest.mark.parametrize("garbage", [b"\xff", b"1;3:0.5000;", b"1;" + b"0:1.0000,319:9.0000;", b"1;" + b"9" * 1_000_000])
def test_a_poisoned_histogram_delays_no_read_by_more_than_four_usual_gaps(
    patience: Patience, settings: Settings, raw: redis.Redis, garbage: bytes
) -> None:
    raw.set(lags_key(settings.ledger_prefix, str(settings.endpoint_url), "bucket"), garbage)
    usual = gap_seconds(settings, 1.0)

    assert 0 < patience.gap_seconds(late(committed_ago(raw, 1.0)), 3, 1.0) <= 8 * usual


def test_a_client_learns_while_it_waits(
    replicated: Settings, connect: Callable[[Settings], ConsistentS3], bucket: str, sandbox: Sandbox
) -> None:
    client = connect(replicated)
    for number in range(3):
        written = client.write(b"x", f"s3://{bucket}/{number}")
        assert client.read(written, wait=30) == b"x"
    ledger = connect(replicated)._rooms().ledger

    # Two at least: the first look may find an object that was quick.
    told = weights_of(ledger.lags(str(sandbox.read_endpoint_url), bucket)[1])
    assert sum(told.values()) >= 1.9
    with pytest.raises(NotYetVisible):
        client.read(client.write(b"x", f"s3://{bucket}/late"))
