"""A schedule and its history in words, for whoever has to find the fault.

It never leaves out a step that was taken.
"""

from __future__ import annotations

from s3tasks.store import Answer
from tests.faults.schedules import plan
from tests.faults.schedules.families import Family
from tests.faults.schedules.plan import Schedule, Step
from tests.faults.schedules.protocols import Runnable
from tests.faults.schedules.tape import Call
from tests.faults.schedules.wire import Wire
from tests.faults.schedules.world import Run, World


def told(family: Family, protocol: Runnable, wire: Wire, schedule: Schedule) -> str:
    """The schedule played once more, one line per step."""
    world = World(family, protocol, wire, schedule)
    lines = [f"family {schedule.family!r}, seed {schedule.seed}; before: {'an object' if schedule.exists else 'nothing'}"]
    for step in schedule.steps:
        world.take(step)
        lines.append(_line(world, step))
    history = world.finish()
    if schedule.outside_last:
        lines.append("       at the end somebody writes once more")
    crashed = [f"operation {number}" for number, run in enumerate(world.runs) if run.started and run.ended is None]
    if crashed:
        lines.append(f"       never heard of again: {', '.join(crashed)}")
    for read in history.last_reads:
        found = read.error or ("nothing" if read.body is None else read.body.decode())
        lines.append(f"       in the end {'the ref of ' + read.exact if read.exact else 'the key'} reads: {found}")
    return "\n".join(lines)


def _line(world: World, step: Step) -> str:
    when = f"{world.step:4}  {world.s3.second % 1000:3} s  "
    if step.action != plan.GO:
        return f"{when}{step.action}"
    run = world.runs[step.operation]
    operation = run.operation
    who = f"operation {step.operation} ({operation.kind} {operation.write})"
    made = next((call for call in run.tape.calls if call.step == world.step), None)
    behind = f", {step.behind} behind" if step.behind and made and made.name.startswith(("GET", "HEAD")) else ""
    return f"{when}{who}: {_call(made)}{behind}{_end(world, run)}"


def _call(call: Call | None) -> str:
    if call is None:
        return "-"
    error = f" -> {type(call.error).__name__} ({call.fault})" if call.error else ""
    return f"{call.name} {_result(call)}{error}"


def _result(call: Call) -> str:
    if not isinstance(call.result, Answer):
        return str(call.result)
    served = call.result.served
    if served is None:
        return "If-Match fails" if call.result.condition_failed else "serves nothing"
    return f"serves {(served.etag or '')[:6]} of {served.marker or 'somebody'}, {served.last_modified % 1000} s"


def _end(world: World, run: Run) -> str:
    if run.ended != world.step:
        return ""
    return f"  => {run.error or run.result}"
