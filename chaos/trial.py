"""One run: traffic and faults for a while, then quiet, then the oracle's verdict and the figures."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import urllib3

from chaos.cloud import Cloud
from chaos.faults import OF_JOURNAL, OF_PROCESSES, OF_SURROUNDINGS, InjectedFault, Lane, schedule
from chaos.history import History
from chaos.oracle import Violation, collect, compare_registry, judge, quarantined_ids
from chaos.report import Report, recovery
from chaos.system import START_SECONDS, System, Watch
from chaos.traffic import CONNECTIONS, Driver, event, traffic
from chaos.visitor import Visitor
from receiver.simulator import Simulator
from receiver.testing.cloud import Cloud as FakeDT
from receiver.testing.running import wait_until

AFTERMATH_SECONDS = 10.0
"""How long traffic continues after the last fault."""

IDLE_SECONDS = 180.0
"""How long it may take then until all queues are empty; a claim of a killed dispatcher lasts 20 s."""

FRESH_SECONDS = 20.0
PUSHES_SECONDS = 0.2
MAX_EXPLAINED = 3
KEY_SECONDS = 90.0
"""How long it may take until a new key of DT is known: keys are fetched every 30 s at most."""

GAUGES = ("receiver_pending_deliveries", "receiver_sink_paused", "receiver_dead_letters")
"""What is 0 for each sink when all queues are empty."""


@dataclass(frozen=True)
class Trial:
    """What to run: for how long, at how many pushes per second, and how much faster than usual the faults come.

    It runs for longer if less than `min_pushes` different bodies were pushed by then, or a lane has injected less than
    `min_faults`. With `only`, these kinds of faults are injected, in one lane. With `expire_claims` the claims of
    killed dispatchers are ended instead of waited for.
    """

    seed: int
    journal: str
    seconds: float
    rate: float = 50.0
    speed: float = 1.0
    min_pushes: int = 0
    min_faults: int = 0
    only: tuple[str, ...] = ()
    expire_claims: bool = False


def run(trial: Trial, folder: Path, stop: threading.Event | None = None) -> Report:
    """Run a trial in an empty folder. When `stop` is set, it begins no more faults, and judges what was pushed."""
    with FakeDT() as dt:
        return run_with(dt, trial, folder, stop or threading.Event())


def run_with(dt: FakeDT, trial: Trial, folder: Path, stop: threading.Event) -> Report:
    system = System(folder, trial.journal, trial.speed, dt.environment)
    cloud = Cloud([system.receiver], CONNECTIONS, system.issuer)
    driver = Driver(cloud, traffic(trial.seed, trial.rate))
    watch, visitor, history = Watch(system), Visitor(system.receiver), History(dt, driver, system.receiver)
    try:
        system.start()
        system.process("worker")
        watch.start()
        visitor.start()
        driver.start()
        history.start()
        wait_until(lambda: system.target.accepted, START_SECONDS, "the first delivery")
        injected, violations = inject_faults(system, driver, trial, stop)
        time.sleep(AFTERMATH_SECONDS / trial.speed)
        driver.finish(IDLE_SECONDS)
        history.finish()
        violations += wait_until_idle(system, driver, expire_claims=trial.expire_claims)
        watch.finish()
        violations += [*visitor.finish(), *history.compare()]
        verdict = judge(
            driver.ledger.entries, quarantined_ids(system), collect(system), system.disabled, repeats=not trial.only
        )
        violations += verdict.violations
        explanations = explain(system, violations)
        violations += compare_registry(system)
        violations += stop_receiver(system)
    finally:
        cloud.stop()
        system.close()
    got_200 = sorted(cloud.accepted_at)
    return Report(
        f"journal {trial.journal}, seed {trial.seed}, {trial.seconds:.0f} s of faults at {trial.rate:.0f} pushes/s",
        len(driver.ledger),
        cloud.pushes,
        cloud.responses,
        verdict.repeats,
        [recovery(fault, got_200, watch.grew) for fault in injected],
        system.exits,
        violations,
        explanations,
        [f"{kind}: {reason}" for kind, reason in system.untested.items()],
    )


def inject_faults(
    system: System, driver: Driver, trial: Trial, stop: threading.Event
) -> tuple[list[InjectedFault], list[Violation]]:
    """Inject faults in two lanes that overlap; all of them, and the promises found broken meanwhile."""
    kinds: dict[str, Sequence[str]] = {
        "processes": OF_PROCESSES,
        "surroundings": OF_SURROUNDINGS + OF_JOURNAL[trial.journal],
    }
    if trial.only:
        kinds = {"only": trial.only}
    possible = {name: [kind for kind in kinds[name] if kind not in system.untested] for name in kinds}
    lanes = [Lane(system, schedule(trial.seed, name, possible[name], trial.speed)) for name in possible]
    for lane in lanes:
        lane.start()
    stop.wait(trial.seconds)
    while len(driver.ledger) < trial.min_pushes and not stop.wait(PUSHES_SECONDS):
        pass
    for lane in lanes:
        lane.finish(trial.min_faults, stop)
    injected = sorted((fault for lane in lanes for fault in lane.injected), key=lambda fault: fault.began_at)
    return injected, [Violation(failure) for lane in lanes for failure in lane.failures]


def wait_until_idle(system: System, driver: Driver, *, expire_claims: bool) -> list[Violation]:
    """Wait for readiness and empty queues; then a new push must be delivered, and one signed with DT's newest key."""

    def is_idle() -> bool:
        if expire_claims:
            system.expire_claims()
        return not find_activity(system)

    def is_key_known() -> bool:
        return system.receiver.push(by_key.body, system.issuer.sign(by_key.body))[0] == 200

    try:
        wait_until(is_idle, IDLE_SECONDS, "a ready receiver with empty queues")
        driver.push(event(Simulator().body("touch")))
        by_key = event(Simulator().body("touch"))
        driver.ledger.record_push(by_key)
        wait_until(is_key_known, KEY_SECONDS, "the newest key of DT")
        driver.ledger.confirm(by_key)
        wait_until(is_idle, FRESH_SECONDS, "the delivery of new pushes")
    except AssertionError as error:
        return [Violation(f"{error}; {'; '.join(find_activity(system))}")]
    return []


def find_activity(system: System) -> list[str]:
    """Every reason why the receiver is not ready and idle."""
    try:
        if not system.receiver.is_ok("/readyz"):
            return ["/readyz says that it is not ready"]
        page = system.receiver.http.request("GET", f"{system.receiver.url}/metrics").data.decode()
    except urllib3.exceptions.HTTPError as error:
        return [f"no response: {type(error).__name__}"]
    values = dict(re.findall(r"^([^#\s]\S*) (\S+)$", page, re.MULTILINE))
    gauges = [f'{gauge}{{sink="{name}"}}' for gauge in GAUGES for name in [*system.sinks, "sensors"]]
    return [
        f"{gauge} is {values.get(gauge, 'missing')}"
        for gauge in ["receiver_unrouted_events", *gauges]
        if float(values.get(gauge, "nan")) != 0
    ]


def explain(system: System, violations: Sequence[Violation]) -> list[str]:
    """What `explain` says of the first events for which a promise was broken."""
    ids = dict.fromkeys(name for violation in violations for name in violation.ids[:MAX_EXPLAINED])
    return [system.receiver.run("explain", name) for name in list(ids)[:MAX_EXPLAINED]]


def stop_receiver(system: System) -> list[Violation]:
    try:
        system.stop()
    except AssertionError as error:
        return [Violation(str(error))]
    return []
