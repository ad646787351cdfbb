"""What was asked, what was heard, what that means and what to change; and how to ask so that no question spoils the others.

It never asks anything itself.
"""

from __future__ import annotations

import enum
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from s3tasks.errors import S3TasksError


class Grade(enum.Enum):
    """What a finding means: nothing to change, something to change, or that it could not be found out."""

    OK = "ok"
    WARN = "warn"
    BAD = "bad"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Said:
    """An answer and what it means."""

    verdict: Grade
    heard: str
    advice: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Finding:
    """One question with its answer. `name` stays the same between versions, for scripts; no field ever holds a secret.

    `settings` are those of s3tasks that would fit better than those in force, by name.
    """

    name: str
    question: str
    heard: str
    verdict: Grade
    advice: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The finding as JSON."""
        return {
            "name": self.name, "question": self.question, "heard": self.heard, "verdict": self.verdict.value,
            "advice": self.advice, "settings": dict(self.settings),
        }


def ok(heard: str, **settings: str) -> Said:
    """Nothing that must be changed; `settings` would fit better."""
    return Said(Grade.OK, heard, settings=settings)


def warn(heard: str, advice: str, **settings: str) -> Said:
    """Something that should be changed."""
    return Said(Grade.WARN, heard, advice, settings)


def bad(heard: str, advice: str, **settings: str) -> Said:
    """Something that must be changed."""
    return Said(Grade.BAD, heard, advice, settings)


def unknown(heard: str, advice: str = "") -> Said:
    """It could not be found out."""
    return Said(Grade.UNKNOWN, heard, advice)


def is_refusal(reason: str) -> bool:
    """Whether Redis refused for want of a right, by what redis-py says."""
    return "NoPermission" in reason or "NOPERM" in reason


@dataclass
class Examination:
    """Asks questions one after the other, for `seconds` in all: later ones are not begun."""

    seconds: float
    findings: list[Finding] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    @property
    def seconds_left(self) -> float:
        """How much of the time is left."""
        return max(self.began + self.seconds - time.monotonic(), 0.0)

    def ask(self, name: str, question: str, answer: Callable[[], Said]) -> Said:
        """Asks, and keeps the finding. Whatever goes wrong with one question is its answer, and the next one is asked."""
        if self.seconds_left <= 0:
            said = unknown(f"not asked: the {self.seconds:g} s for all questions are over", "give it more time: --seconds")
        else:
            said = _survived(answer)
        self.keep(name, question, said)
        return said

    def keep(self, name: str, question: str, said: Said) -> None:
        """Keeps what has been found out already."""
        heard, advice = _without_secrets(said.heard), _without_secrets(said.advice)
        self.findings.append(Finding(name, question, heard, said.verdict, advice, said.settings))

    def leave_out(self, why: str, *questions: tuple[str, str]) -> None:
        """Questions (name and text) that need not be asked."""
        self.findings.extend(Finding(name, question, f"not asked: {why}", Grade.UNKNOWN) for name, question in questions)


def _survived(answer: Callable[[], Said]) -> Said:
    try:
        return answer()
    except S3TasksError as problem:
        return unknown(str(problem))
    except Exception as problem:  # noqa: BLE001 - whatever it is, it is told, and must not keep the other questions from being asked
        return unknown(f"{type(problem).__name__}: {problem}")


def _without_secrets(text: str) -> str:
    """The text with what stands before the host in any URL masked: it may quote what a library said."""
    return re.sub(r"://[^/\s@]*@", "://***@", text)
