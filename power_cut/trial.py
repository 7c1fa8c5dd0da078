"""One run: lives are recorded, power cuts tried on the recordings, and every promise checked on what they leave."""

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
from power_cut.lives import Lives, put_old_journal
from power_cut.machine import NEVER, Machine, write_files
from power_cut.oracle import Oracle
from power_cut.recording import Files, Kind, Operation, Recording

SHARES = {"from the first start": 0.5, "upgrade": 0.1, "recovery": 0.4}
"""Which share of the states is of which life."""

STATES_OF_A_CUT = 4
"""How many of the states at a cut usually differ."""


class Interruption(StrEnum):
    """What ends the first life before a recovery in which the power fails again."""

    CUT = "a power cut"
    TORN_ROW = "a power cut while rows were written"
    KILL = "SIGKILL"


INTERRUPTED: dict[Interruption, Callable[[Operation], bool]] = {
    Interruption.CUT: lambda operation: True,
    Interruption.TORN_ROW: lambda operation: operation.kind is Kind.WRITE and operation.path.endswith(".csv"),
    Interruption.KILL: lambda operation: operation.kind in (Kind.MAKE_FOLDER, Kind.RENAME, Kind.UNLINK),
}
"""The operations after which it comes; SIGKILL directly after a change of names, before it can be flushed."""


@dataclass(frozen=True)
class Trial:
    """What to run: about so many states of the disk. `pushes` is how many items are pushed in each phase of a life."""

    seed: int
    states: int
    pushes: int = 40

    @property
    def restarts(self) -> int:
        """On how many of the states the program itself is started."""
        return self.states // 100

    @property
    def recoveries(self) -> int:
        """How many recoveries are recorded, in which the power fails again."""
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
    """How many different states were tried by phase and rules, and what came out."""

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
    report, lives = Report(), Lives(trial.pushes)
    rng = random.Random(f"recoveries {trial.seed}")

    def judged(name: str, machine: Machine, recording: Recording, share: float) -> None:
        say(f"{name}: {len(recording.operations)} operations, {len(machine.ledger)} items")
        count, restarts = round(trial.states * share), round(trial.restarts * share)
        for failure in judge(machine, recording, f"{trial.seed} {name}", count, restarts, report):
            say(str(failure))

    first = Machine(folder / "first", trial.seed)
    recording = first.run(lives.from_the_first_start)
    judged("from the first start", first, recording, SHARES["from the first start"])

    old = Machine(folder / "old", trial.seed)
    old.ledger += put_old_journal(old.disk)
    judged("upgrade", old, old.run(lives.upgrade), SHARES["upgrade"])

    for number in range(trial.recoveries):
        interruption = list(Interruption)[number % len(Interruption)]
        again, later = live_again(first, recording, lives, rng.randrange(1 << 30), interruption)
        judged(f"recovery {number} from {interruption}", again, later, SHARES["recovery"] / trial.recoveries)
    return report


def live_again(
    machine: Machine, recording: Recording, lives: Lives, seed: int, interruption: Interruption
) -> tuple[Machine, Recording]:
    """A life that begins with what an interruption has left of another one."""
    rng = random.Random(seed)
    cut = rng.choice([at for at, each in enumerate(recording.operations, start=1) if INTERRUPTED[interruption](each)])
    losses = [NOTHING_LOST if interruption is Interruption.KILL else Loss("some", "some")]
    (state,) = states(recording, rng.choice(RULES), [cut], losses, seed)
    write_files(machine.disk, state.files)
    phase = machine.phase_at(state.position)
    again = Machine(machine.folder, seed, machine.ledger_after(state.position), phase.shift)
    later = again.run(lambda again: lives.recovery(again, f"recovery from {interruption}", phase.config))
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
    """Try about so many different states of a recording, and start the program on some of them; those that fail."""
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
    """About so many states that differ in what is on the disk, in what had got 200 before, or in their phase."""
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
    """Numbers of operations after which the power fails: half of them directly after a push got 200, the others
    anywhere in each phase in turn."""
    ends = [operation.end for operation in recording.operations]
    after_200 = sorted({bisect.bisect_right(ends, entry.position) for entry in machine.ledger})
    chosen = set(rng.sample(after_200, min(count // 2, len(after_200))))
    starts = [bisect.bisect_right(ends, phase.position) for phase in machine.phases]
    phases = list(pairwise([*starts, len(ends)]))
    return chosen | {rng.randint(*phase) for phase in islice(cycle(phases), count - len(chosen))}


def digest(files: Files) -> bytes:
    found = blake2b()
    for path, content in files.items():
        found.update(f"{path} {-1 if content is None else len(content)}\n".encode() + (content or b""))
    return found.digest()
