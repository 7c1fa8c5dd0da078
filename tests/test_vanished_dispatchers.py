"""A dispatcher's machine or network vanishes without a word: another takes over its claims, and it calls no sink."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import RunningReceiver, wait_until
from sqlalchemy import make_url
from support.delivery import add_deliveries
from support.postgresql import Deployment
from support.vanishing import Network

from receiver.testing.postgresql import Server

log = logging.getLogger(__name__)

TAKEN_OVER_SECONDS = 20.0
CALL_SECONDS = 0.2
BATCH = 120
"""More than one thread can deliver before another dispatcher takes over."""

EVENTS = 250
CONFIG = """
[receiver]
plugins = ["slow.py"]
[sensors]
enabled = false
[sinks.slow]
type = "slow"
batch_size = {batch}
concurrency = {concurrency}
"""
PLUGIN = f"""
import os, time
from receiver import hookimpl

class Slow:
    @hookimpl
    def deliver(self, event):
        with open("{{calls}}", "a") as file:
            file.write(f"{{{{time.monotonic()}}}} {{{{os.getsid(0)}}}} {{{{event.id}}}}\\n")
        time.sleep({CALL_SECONDS})

@hookimpl
def register_sinks(register):
    register("slow", Slow)
"""
HOLDER = "SELECT holder FROM deliveries WHERE event = {}"
HELD = "SELECT count(*) FROM deliveries WHERE holder = '{}'"
UNDELIVERED = "SELECT count(*) FROM deliveries WHERE state <> 1"


@dataclass(frozen=True)
class Call:
    at: float
    dispatcher: int
    event_id: str


class Fleet:
    """Dispatchers on one database, each with a network of its own, and the calls of the sink that all of them have."""

    def __init__(self, folder: Path, server: Server, deployment: Deployment) -> None:
        self._folder = folder
        self._server = server
        self._deployment = deployment
        self._receivers: list[RunningReceiver] = []
        self._networks: list[Network] = []

    def start(self, *, batch: int = 10, concurrency: int = 8) -> tuple[RunningReceiver, Network]:
        """Start a dispatcher, and wait for its first call."""
        network = Network(self._server.socket)
        name = make_url(self._deployment.url).database
        folder = self._folder / f"dispatcher{len(self._receivers)}"
        folder.mkdir()
        (folder / "slow.py").write_text(PLUGIN.format(calls=self._folder / "calls"), encoding="utf-8")
        config = CONFIG.format(batch=batch, concurrency=concurrency)
        url = f"postgresql://postgres@127.0.0.1:{network.port}/{name}?sslmode=disable"
        receiver = RunningReceiver(folder, config, None, {"DATABASE_URL": url})
        receiver.command[-1] = "deliver"
        self._receivers.append(receiver.launch())
        self._networks.append(network)
        wait_until(lambda: self.calls(receiver), what="the first call")
        return receiver, network

    def calls(self, receiver: RunningReceiver) -> list[Call]:
        """The calls that one dispatcher has begun."""
        assert receiver.process is not None
        path = self._folder / "calls"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        calls = [Call(float(at), int(pid), event_id) for at, pid, event_id in map(str.split, lines)]
        return [call for call in calls if call.dispatcher == receiver.process.pid]

    def close(self) -> None:
        for receiver in self._receivers:
            assert receiver.process is not None
            os.killpg(receiver.process.pid, signal.SIGCONT)
            receiver.kill_all()
        for network in self._networks:
            network.close()


@pytest.fixture
def fleet(tmp_path: Path, server: Server, own_deployment: Deployment) -> Iterator[Fleet]:
    fleet = Fleet(tmp_path, server, own_deployment)
    yield fleet
    fleet.close()


@pytest.mark.serial
def test_claims_of_dispatchers_that_vanished_are_taken_over_within_20_s_and_they_begin_no_call_after_that(
    fleet: Fleet, own_deployment: Deployment
) -> None:
    """One loses its network and works on, the other is suspended with its machine, and comes back later."""
    ids = {f"{number:03}" for number in range(EVENTS)}
    add_deliveries(own_deployment.open(), "slow", *sorted(ids))
    cut_off, network = fleet.start(batch=BATCH, concurrency=1)
    suspended, its_network = fleet.start(batch=BATCH, concurrency=1)
    other, _ = fleet.start()
    holders = [own_deployment.sql(HOLDER.format(BATCH * number))[0][0] for number in (1, 2)]
    assert None not in holders
    assert suspended.process is not None
    begun = len(fleet.calls(suspended))
    wait_until(lambda: len(fleet.calls(suspended)) > begun, what="a call, in which it is suspended")

    network.vanish()
    its_network.vanish()
    os.killpg(suspended.process.pid, signal.SIGSTOP)
    vanished_at = time.monotonic()
    for holder in holders:
        query = HELD.format(holder)
        wait_until(lambda query=query: own_deployment.sql(query) == [(0,)], seconds=60, what="the end of its claims")
    taken_over_at = time.monotonic()
    log.info("claims were taken over after %.1f s", taken_over_at - vanished_at)
    os.killpg(suspended.process.pid, signal.SIGCONT)
    wait_until(lambda: own_deployment.sql(UNDELIVERED) == [(0,)], seconds=60, what="all deliveries")

    assert taken_over_at - vanished_at < TAKEN_OVER_SECONDS
    before = {call.event_id for each in (cut_off, suspended) for call in fleet.calls(each) if call.at < vanished_at}
    assert ids - before <= {call.event_id for call in fleet.calls(other)}
    wait_until(lambda: "waits for the journal" in suspended.log, what="the end of its first call of the journal")
    assert max(call.at for each in (cut_off, suspended) for call in fleet.calls(each)) < taken_over_at
