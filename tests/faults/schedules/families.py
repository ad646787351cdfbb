"""Which schedules are drawn, and which guarantees each family of them must keep.

It never draws one. What a family does not assert is counted all the same, and shown in the table.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from s3tasks.settings import Settings
from tests.faults.schedules.checker import EXACT, ONCE, ORDER, READABLE, REF_READABLE, REPLACED, TURNS

LEDGER_PREFIX = "schedules"
_TWO_ENDPOINTS = {"endpoint_url": "http://origin.test", "read_endpoint_url": "http://replica.test"}
_ONE_ENDPOINT = {"endpoint_url": "http://origin.test"}
_SOUND = frozenset({REPLACED, ORDER, ONCE, EXACT})
_ALL = _SOUND | {READABLE, REF_READABLE}


@dataclass(frozen=True)
class Family:
    """One kind of schedules.

    `one_by_one`: no write begins while another is going on. `own_seconds`: S3's clock passes two seconds between any two of its
    changes; else it stands still, or ticks at random with `ticks`. The rest are chances per step, or per operation.
    """

    name: str
    asserts: frozenset[str]
    settings: dict[str, str] = field(default_factory=lambda: dict(_TWO_ENDPOINTS))
    origin_is_late: bool = False
    one_by_one: bool = False
    own_seconds: bool = True
    ticks: float = 0.0
    crash: float = 0.08
    faults: tuple[tuple[str, float], ...] = (("lost", 0.03), ("failed", 0.02), ("refused", 0.01))
    redelivered_early: float = 0.0
    redelivered: float = 0.6
    outside: float = 0.0
    outside_deletes: float = 0.0
    flushes: float = 0.0
    same_bodies: float = 0.1
    deletes: float = 0.25
    late_deletes: bool = False
    versioned: bool = False

    @property
    def reads_are_late(self) -> bool:
        return self.origin_is_late or "read_endpoint_url" in self.settings

    def settings_for(self, ledger_url: str) -> Settings:
        return Settings(ledger_url=ledger_url, ledger_prefix=LEDGER_PREFIX, **self.settings)  # type: ignore[arg-type]


_TURNS = {**_TWO_ENDPOINTS, "on_overlap": "serialize"}
_STRONG = {**_ONE_ENDPOINT, "store_consistency": "strong"}
_LATE = (("late", 0.08), ("lost", 0.03), ("failed", 0.02))
_ANY_FAULT = (*_LATE, ("refused", 0.03))

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family("one by one", _ALL, one_by_one=True),
        Family("one by one, one second", _ALL, one_by_one=True, own_seconds=False),
        Family("overlapping", _ALL),
        Family("overlapping, one second", _SOUND, own_seconds=False, ticks=0.05),
        Family("eventual origin", _ALL, settings=dict(_ONE_ENDPOINT), origin_is_late=True),
        Family("strong store", _ALL, settings=dict(_STRONG), own_seconds=False),
        Family("escalating reads", _ALL, settings={**_TWO_ENDPOINTS, "on_stale": "origin"}),
        Family("versioned bucket", _ALL, versioned=True, same_bodies=0.5),
        Family("taking turns", _ALL | {TURNS}, settings=dict(_TURNS)),
        Family("taking turns, redelivered early", _SOUND, settings=dict(_TURNS), redelivered_early=0.5),
        Family("outside writers", _ALL, outside=0.06),
        Family("outside writers, eventual origin", _ALL, settings=dict(_ONE_ENDPOINT), origin_is_late=True, outside=0.06),
        Family("outside writers, one second", _SOUND, outside=0.06, own_seconds=False, ticks=0.05),
        Family("outside deletes", _SOUND, outside=0.03, outside_deletes=0.06),
        Family("rejecting outside writers", _ALL, settings={**_TWO_ENDPOINTS, "outside_writes": "reject"}),
        Family("redelivered early", _ALL, redelivered_early=0.5, crash=0.05, deletes=0.0),
        Family("redelivered early, deletes", _SOUND, redelivered_early=0.5, crash=0.05),
        Family("late puts", _ALL, faults=_LATE, redelivered_early=0.2, deletes=0.0),
        Family("late puts, deletes", _ALL, faults=_LATE, deletes=0.1),
        Family("late puts, one second", _SOUND, faults=_LATE, redelivered_early=0.2, deletes=0.1, own_seconds=False),
        Family("late deletes", _SOUND, faults=_LATE, redelivered_early=0.2, late_deletes=True),
        Family("many crashes", _ALL, crash=0.25, redelivered=0.9),
        Family("many faults", _ALL, faults=(("lost", 0.15), ("failed", 0.1), ("refused", 0.08))),
        Family("strong store, redelivered early", _ALL, settings=dict(_STRONG), redelivered_early=0.5, deletes=0.0),
        Family("versioned bucket, redelivered early", _ALL, versioned=True, redelivered_early=0.5, deletes=0.0),
        Family("outside writers, redelivered early", _ALL, outside=0.06, redelivered_early=0.5, deletes=0.0),
        Family("eventual origin, late puts", _ALL, settings=dict(_ONE_ENDPOINT), origin_is_late=True, faults=_LATE, deletes=0.1),
        Family("everything at once", _SOUND, faults=_ANY_FAULT, redelivered_early=0.3, outside=0.05),
        Family(
            "everything at once, one second", _SOUND, faults=_ANY_FAULT, redelivered_early=0.3, outside=0.05,
            own_seconds=False, ticks=0.1,
        ),
        Family("ledger flushed", frozenset({EXACT}), flushes=0.05),
    )
}
