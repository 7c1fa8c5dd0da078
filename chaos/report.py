"""The results of a run, as text."""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from chaos.faults import InjectedFault
from chaos.oracle import Violation

MAX_SHOWN = 20
"""How many faults are shown one by one."""


@dataclass(frozen=True)
class Recovery:
    """A fault, and the seconds from its end to the next 200, and until every destination has received something.

    `without_200` is how long there was no 200 before and after its end. Faults overlap, so each time includes what
    other faults added. None where nothing followed.
    """

    fault: InjectedFault
    to_next_200: float | None
    without_200: float | None
    to_deliveries: float | None


@dataclass(frozen=True)
class Report:
    """`exits` are the codes with which receivers exited that had not been stopped, `untested` what was left out."""

    headline: str
    bodies: int
    pushes: int
    responses: Counter[tuple[int, str]]
    repeats: Mapping[str, int]
    recoveries: Sequence[Recovery]
    exits: Sequence[int]
    violations: Sequence[Violation]
    explanations: Sequence[str]
    untested: Sequence[str] = ()

    def __str__(self) -> str:
        return "\n".join([*self._totals(), "", *self._table(), "", *self._verdict()])

    def _totals(self) -> list[str]:
        repeats = ", ".join(f"{sink} {count}" for sink, count in self.repeats.items() if count)
        exits = ", ".join(f"{count} with code {code}" for code, count in sorted(Counter(self.exits).items()))
        return [
            self.headline,
            f"{self.bodies} different bodies in {self.pushes} pushes, with these responses:",
            *(f"{count:8} {status or '---'} {text}" for (status, text), count in self.responses.most_common()),
            f"attempts after the first, seen by the destinations: {repeats or 'none'}",
            f"receivers that exited without being stopped: {exits or 'none'}",
            *(f"not tested, {each}" for each in self.untested),
        ]

    def _table(self) -> list[str]:
        kinds = sorted({recovery.fault.kind for recovery in self.recoveries})
        singly = self.recoveries if len(self.recoveries) <= MAX_SHOWN else []
        return [
            f"{'fault':30}{'count':>6}{'longest to the next 200':>25}{'without a 200':>15}"
            f"{'to deliveries at all sinks':>28}",
            *(row(kind, [each for each in self.recoveries if each.fault.kind == kind]) for kind in kinds),
            row("all", self.recoveries),
            *(row(f"{each.fault.kind} {each.fault.detail}"[:30], [each]) for each in singly),
        ]

    def _verdict(self) -> list[str]:
        if not self.violations:
            return ["No promise was broken."]
        return ["BROKEN PROMISES:", *map(str, self.violations), *self.explanations]


def row(name: str, recoveries: Sequence[Recovery]) -> str:
    next_200 = longest(each.to_next_200 for each in recoveries)
    without_200 = longest(each.without_200 for each in recoveries)
    deliveries = longest(each.to_deliveries for each in recoveries)
    return f"{name:30}{len(recoveries):>6}{next_200:>25}{without_200:>15}{deliveries:>28}"


def longest(times: Iterable[float | None]) -> str:
    known = list(times)
    return "never" if None in known else f"{max(filter(None, known), default=0.0):.1f} s"


def recovery(fault: InjectedFault, got_200: Sequence[float], grew: Mapping[str, Sequence[float]]) -> Recovery:
    """How long it took after a fault, from the times at which pushes got 200 and at which each destination grew."""
    delivered = [seconds_to_next(fault.ended_at, times) for times in grew.values()]
    known = [seconds for seconds in delivered if seconds is not None]
    to_deliveries = max(known) if len(known) == len(delivered) else None
    next_200 = seconds_to_next(fault.ended_at, got_200)
    place = bisect.bisect_right(got_200, fault.ended_at)
    before = fault.ended_at - got_200[place - 1] if place else 0.0
    return Recovery(fault, next_200, None if next_200 is None else before + next_200, to_deliveries)


def seconds_to_next(moment: float, times: Sequence[float]) -> float | None:
    """Seconds from a moment to the next of these times, which are in order."""
    place = bisect.bisect_right(times, moment)
    return times[place] - moment if place < len(times) else None
