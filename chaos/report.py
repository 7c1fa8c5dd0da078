"""What a run has shown, as text for people."""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from chaos.faults import Happened
from chaos.oracle import Got, Violation


@dataclass(frozen=True)
class Recovery:
    """A fault, and the seconds from its end to the next 200, and until every sink has got something again.

    Faults overlap, so the times hold what another fault added to them. None where nothing came any more.
    """

    fault: Happened
    to_answer: float | None
    to_deliveries: float | None


@dataclass(frozen=True)
class Report:
    """`exits` are the codes with which receivers ended although nobody had asked them to."""

    headline: str
    bodies: int
    pushes: int
    answers: Counter[tuple[int, str]]
    got: Sequence[Got]
    recoveries: Sequence[Recovery]
    exits: Sequence[int]
    violations: Sequence[Violation]
    explained: Sequence[str]

    def __str__(self) -> str:
        return "\n".join([*self._totals(), "", *self._table(), "", *self._verdict()])

    def _totals(self) -> list[str]:
        repeated = ", ".join(f"{got.sink} {got.repeated}" for got in self.got if got.repeated)
        exits = ", ".join(f"{count} with {code}" for code, count in sorted(Counter(self.exits).items()))
        return [
            self.headline,
            f"{self.bodies} different bodies in {self.pushes} pushes, which were answered:",
            *(f"{count:8} {status or '---'} {text}" for (status, text), count in self.answers.most_common()),
            f"attempts after the first, as the targets saw them: {repeated or 'none'}",
            f"receivers that ended unasked: {exits or 'none'}",
        ]

    def _table(self) -> list[str]:
        kinds = sorted({recovery.fault.kind for recovery in self.recoveries})
        return [
            f"{'fault':30}{'times':>6}{'longest to the next 200':>25}{'to deliveries at all sinks':>28}",
            *(row(kind, [each for each in self.recoveries if each.fault.kind == kind]) for kind in kinds),
            row("all", self.recoveries),
        ]

    def _verdict(self) -> list[str]:
        if not self.violations:
            return ["Every promise was kept."]
        return ["BROKEN:", *map(str, self.violations), *self.explained]


def row(name: str, recoveries: Sequence[Recovery]) -> str:
    answers = longest(each.to_answer for each in recoveries)
    deliveries = longest(each.to_deliveries for each in recoveries)
    return f"{name:30}{len(recoveries):>6}{answers:>25}{deliveries:>28}"


def longest(times: Iterable[float | None]) -> str:
    known = list(times)
    return "never" if None in known else f"{max(filter(None, known), default=0.0):.1f} s"


def recovery(fault: Happened, answered: Sequence[float], grew: Mapping[str, Sequence[float]]) -> Recovery:
    """How long it took after a fault, given when pushes were answered 200 and when each target grew."""
    delivered = [after(fault.ended, times) for times in grew.values()]
    known = [seconds for seconds in delivered if seconds is not None]
    return Recovery(fault, after(fault.ended, answered), max(known) if len(known) == len(delivered) else None)


def after(moment: float, times: Sequence[float]) -> float | None:
    """Seconds from a moment to the next of these times, which are in order."""
    place = bisect.bisect_right(times, moment)
    return times[place] - moment if place < len(times) else None
