"""One run: traffic and faults for a while, then rest, then the oracle's verdict and the figures."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import urllib3

from chaos.faults import OF_JOURNAL, OF_PROCESSES, OF_SURROUNDINGS, Happened, Lane, schedule
from chaos.oracle import Violation, collect, judge, no_events_kept
from chaos.report import Report, recovery
from chaos.system import SINKS, System, Watch
from chaos.traffic import CONNECTIONS, Driver, event, traffic
from receiver.simulator import Simulator
from receiver.testing.cloud import Cloud
from receiver.testing.running import wait_until

AFTERMATH_SECONDS = 10.0
"""How long traffic goes on when the faults are over."""

REST_SECONDS = 180.0
"""How long all that is owed may take then; a claim of a dispatcher that is gone lasts a minute."""

FRESH_SECONDS = 20.0
EXPLAINED_AT_MOST = 3
OWED = re.compile(r"^(receiver_(?:unmatched|pending|paused|dead)\b\S*) (?!0(?:\.0)?$)(\S+)$", re.MULTILINE)


@dataclass(frozen=True)
class Trial:
    """What to run: for how long, at how many pushes a second, and how much faster than usual the faults come.

    With `hurry` the claims of dispatchers that are gone are not waited for.
    """

    seed: int
    journal: str
    seconds: float
    rate: float = 50.0
    speed: float = 1.0
    hurry: bool = False


def run(trial: Trial, folder: Path) -> Report:
    """Let it all happen, in an empty folder."""
    system = System(folder, trial.journal)
    cloud = Cloud([system.receiver], CONNECTIONS)
    driver = Driver(cloud, traffic(trial.seed, trial.rate))
    watch = Watch(system)
    try:
        system.up()
        system.process("worker")
        watch.start()
        driver.start()
        happened, violations = suffer(system, trial)
        time.sleep(AFTERMATH_SECONDS / trial.speed)
        driver.finish(REST_SECONDS)
        violations += rest(system, driver, hurry=trial.hurry)
        watch.finish()
        got, entries = collect(system), driver.ledger.entries
        violations += judge(entries, no_events_kept(system), got, system.disabled)
        explained = explain(system, violations)
        violations += stop(system)
    finally:
        cloud.stop()
        system.close()
    return Report(
        f"journal {trial.journal}, seed {trial.seed}, {trial.seconds:.0f} s of faults at {trial.rate:.0f} pushes/s",
        len(entries),
        cloud.pushes,
        cloud.answers,
        got,
        [recovery(fault, sorted(cloud.times), watch.grew) for fault in happened],
        system.exits,
        violations,
        explained,
    )


def suffer(system: System, trial: Trial) -> tuple[list[Happened], list[Violation]]:
    """Let faults happen, in two lanes that overlap; what happened, and where a fault found a promise broken."""
    kinds = {"processes": OF_PROCESSES, "surroundings": OF_SURROUNDINGS + OF_JOURNAL[trial.journal]}
    lanes = [Lane(system, schedule(trial.seed, name, kinds[name], trial.speed)) for name in kinds]
    for lane in lanes:
        lane.start()
    time.sleep(trial.seconds)
    for lane in lanes:
        lane.finish()
    happened = sorted((fault for lane in lanes for fault in lane.happened), key=lambda fault: fault.began)
    return happened, [Violation(failure) for lane in lanes for failure in lane.failures]


def rest(system: System, driver: Driver, *, hurry: bool) -> list[Violation]:
    """Wait for health and empty queues; then a fresh push must go through."""
    try:
        if hurry and system.server:
            system.let_claims_run_out()
        wait_until(lambda: not owed(system), REST_SECONDS, "a healthy receiver with empty queues")
        driver.push(event(Simulator().body("touch")))
        wait_until(lambda: not owed(system), FRESH_SECONDS, "the delivery of a fresh push")
    except AssertionError as error:
        return [Violation(f"{error}; {'; '.join(owed(system))}")]
    return []


def owed(system: System) -> list[str]:
    """What is not as it is at rest."""
    try:
        if not system.receiver.answers("/readyz"):
            return ["/readyz says that it is not ready"]
        answer = system.receiver.http.request("GET", f"{system.receiver.url}/metrics")
    except urllib3.exceptions.HTTPError as error:
        return [f"no answer: {type(error).__name__}"]
    page = answer.data.decode()
    unknown = [name for name in SINKS if f'receiver_pending{{sink="{name}"}}' not in page]
    return [f"{name} is {number}" for name, number in OWED.findall(page)] + unknown


def explain(system: System, violations: Sequence[Violation]) -> list[str]:
    """What the receiver itself says of the first events for which a promise was broken."""
    ids = dict.fromkeys(name for violation in violations for name in violation.ids[:EXPLAINED_AT_MOST])
    return [system.receiver.run("explain", name) for name in list(ids)[:EXPLAINED_AT_MOST]]


def stop(system: System) -> list[Violation]:
    try:
        system.down()
    except AssertionError as error:
        return [Violation(str(error))]
    return []
