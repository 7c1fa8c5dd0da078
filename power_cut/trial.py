"""One run: records scenarios, tries power cuts on the recordings, and checks every promise on the disks they leave."""

from __future__ import annotations

import bisect
import random
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import blake2b
from itertools import cycle, islice, pairwise
from pathlib import Path

from power_cut.disk import LOSSES, NOTHING_LOST, RULES, Loss, Rules, State, after_kill, states
from power_cut.machine import NEVER, Machine, write_files
from power_cut.oracle import Oracle
from power_cut.recording import Files, Kind, Operation, Recording
from power_cut.scenarios import Scenarios, put_old_journal

SHARES = {"from the first start": 0.5, "upgrade": 0.1, "recovery": 0.4}
"""The share of the states that each scenario gets."""

STATES_OF_A_CUT = 4
"""How many different states a cut usually has."""


class Interruption(StrEnum):
    """What ends the first scenario before a recovery in which the power fails again."""

    CUT = "a power cut"
    TORN_ROW = "a power cut while rows were written"
    KILL = "SIGKILL"


INTERRUPTED: dict[Interruption, Callable[[Operation], bool]] = {
    Interruption.CUT: lambda operation: True,
    Interruption.TORN_ROW: lambda operation: operation.kind is Kind.WRITE and operation.path.endswith(".csv"),
    Interruption.KILL: lambda operation: operation.kind in (Kind.MAKE_FOLDER, Kind.RENAME, Kind.UNLINK),
}
"""The operations after which it happens; SIGKILL directly after a change of names, before that can be flushed."""


@dataclass(frozen=True)
class Trial:
    """What to run: about `states` states of the disk; each phase of a scenario pushes `pushes` items."""

    seed: int
    states: int
    pushes: int = 40

    @property
    def restarts(self) -> int:
        """The number of states on which the program itself is started."""
        return self.states // 100

    @property
    def recoveries(self) -> int:
        """The number of recoveries that are recorded, to cut the power in them again."""
        return max(3, self.states // 400)


@dataclass(frozen=True)
class Failure:
    """A state from which the receiver does not recover as promised."""

    phase: str
    state: State
    problems: Sequence[str]

    def __str__(self) -> str:
        return f"{self.phase}: {self.state}: {'; '.join(self.problems)}"


@dataclass
class Report:
    """The number of different states that were tried, by phase and rules, and the failures."""

    tried: Counter[tuple[str, str]] = field(default_factory=Counter)
    restarts: int = 0
    operations: int = 0
    confirmed: int = 0
    failures: list[Failure] = field(default_factory=list)

    def __str__(self) -> str:
        names = [rules.name for rules in RULES]
        phases = dict.fromkeys(phase for phase, _ in self.tried)
        lines = [f"| cut during | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
        lines += [f"| {each} | {' | '.join(str(self.tried[each, name]) for name in names)} |" for each in phases]
        lines += [
            "",
            f"{self.operations} operations were recorded, and {self.confirmed} pushes got 200.",
            f"{self.tried.total()} states were tried, and the program was started on {self.restarts} of them.",
            f"{len(self.failures)} states broke a promise.",
        ]
        return "\n".join(lines)


def run(trial: Trial, folder: Path, say: Callable[[str], object] = print) -> Report:
    """Run a trial in an empty folder."""
    report, scenarios = Report(), Scenarios(trial.pushes)
    rng = random.Random(f"recoveries {trial.seed}")

    def judged(name: str, machine: Machine, recording: Recording, share: float) -> None:
        say(f"{name}: {len(recording.operations)} operations, {len(machine.ledger)} items")
        count, restarts = round(trial.states * share), round(trial.restarts * share)
        for failure in judge(machine, recording, f"{trial.seed} {name}", count, restarts, report):
            say(str(failure))

    first = Machine(folder / "first", trial.seed)
    recording = first.run(scenarios.from_the_first_start)
    judged("from the first start", first, recording, SHARES["from the first start"])

    old = Machine(folder / "old", trial.seed)
    old.ledger += put_old_journal(old.disk)
    judged("upgrade", old, old.run(scenarios.upgrade), SHARES["upgrade"])

    for number in range(trial.recoveries):
        interruption = list(Interruption)[number % len(Interruption)]
        again, later = run_after(first, recording, scenarios, rng.randrange(1 << 30), interruption)
        judged(f"recovery {number} from {interruption}", again, later, SHARES["recovery"] / trial.recoveries)
    return report


def run_after(
    machine: Machine, recording: Recording, scenarios: Scenarios, seed: int, interruption: Interruption
) -> tuple[Machine, Recording]:
    """Record the recovery on the disk that an interruption of another scenario has left."""
    rng = random.Random(seed)
    cut = rng.choice([at for at, each in enumerate(recording.operations, start=1) if INTERRUPTED[interruption](each)])
    losses = [NOTHING_LOST if interruption is Interruption.KILL else Loss("some", "some")]
    (state,) = states(recording, rng.choice(RULES), [cut], losses, seed)
    write_files(machine.disk, state.files)
    phase = machine.phase_at(state.position)
    again = Machine(machine.folder, seed, machine.ledger_after(state.position), phase.shift)
    later = again.run(lambda again: scenarios.recovery(again, f"recovery from {interruption}", phase.config))
    return again, after_kill(recording, cut, later) if interruption is Interruption.KILL else later


def judge(
    machine: Machine,
    recording: Recording,
    seed: str,
    count: int,
    restarts: int,
    report: Report,
    rules: Sequence[Rules] = RULES,
) -> Iterator[Failure]:
    """Try about `count` different states of a recording, and start the program on `restarts` of them."""
    oracle = Oracle(machine)
    report.operations += len(recording.operations)
    report.confirmed += sum(0 < entry.position < NEVER for entry in machine.ledger)
    every = max(1, count // restarts) if restarts else 0
    for number, state in enumerate(different_states(machine, recording, seed, count, rules)):
        phase = machine.phase_at(state.position).name
        report.tried[phase, state.rules.name] += 1
        problems = oracle.problems(state)
        if every and number % every == every // 2:
            report.restarts += 1
            problems += oracle.problems_of_recovery(state)
        if problems:
            report.failures.append(Failure(phase, state, problems))
            yield report.failures[-1]


def different_states(
    machine: Machine, recording: Recording, seed: str, count: int, rules: Sequence[Rules]
) -> Iterator[State]:
    """About `count` states that differ in the files on the disk, in which pushes got 200, or in their phase."""
    chosen = cuts(machine, recording, 1 + count // STATES_OF_A_CUT, random.Random(seed))
    seen: set[tuple[bytes, int, str]] = set()
    for each in rules:
        for state in states(recording, each, chosen, LOSSES, seed):
            phase = machine.phase_at(state.position)
            key = digest(state.files), len(machine.confirmed_at(state.position)), phase.name
            if key not in seen:
                seen.add(key)
                yield state


def cuts(machine: Machine, recording: Recording, count: int, rng: random.Random) -> Collection[int]:
    """The operations after which the power fails, by number: half of them follow directly on a 200, the others are
    spread evenly over the phases."""
    ends = [operation.end for operation in recording.operations]
    after_200 = sorted({bisect.bisect_right(ends, entry.position) for entry in machine.ledger})
    chosen = set(rng.sample(after_200, min(count // 2, len(after_200))))
    starts = [bisect.bisect_right(ends, phase.position) for phase in machine.phases]
    phases = [range(start, max(start + 1, end)) for start, end in pairwise([*starts, len(ends) + 1])]
    return chosen | {rng.choice(phase) for phase in islice(cycle(phases), count - len(chosen))}


def digest(files: Files) -> bytes:
    found = blake2b()
    for path, content in files.items():
        found.update(f"{path} {-1 if content is None else len(content)}\n".encode() + (content or b""))
    return found.digest()
