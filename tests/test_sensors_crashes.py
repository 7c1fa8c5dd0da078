"""A dispatcher that is killed while it folds leaves the registry as if it had never been killed."""

from __future__ import annotations

import random
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from conftest import ROOT
from support.fold_and_die import events_of, open_one
from support.journals import PostgresqlStore
from support.sensors import at, contents

from receiver.simulator import Simulator

KILLS = 100


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_dispatcher_killed_100_times_while_folding_leaves_the_same_registry(kind: str, tmp_path: Path) -> None:
    chance, simulators = random.Random(1), [Simulator(seed) for seed in range(20)]
    types = ("temperature", "humidity", "networkStatus", "connectionStatus", "batteryStatus", "contact")
    lines = []
    for minute in range(0, 4000, 2):
        body = chance.choice(simulators).body(chance.choice(types), at(minute + chance.uniform(-90, 0)))
        lines.append(b"%f %s" % (at(minute).timestamp(), body))
    path = tmp_path / "events"
    path.write_bytes(b"\n".join(lines))
    database = PostgresqlStore(tmp_path).url if kind == "postgresql" else str(tmp_path / "killed.sqlite")

    subprocess.run(
        [sys.executable, "-m", "support.fold_and_die", database, str(path), str(KILLS)],
        cwd=ROOT / "tests",
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        check=True,
        timeout=120,
    )

    with closing(open_one(database)) as killed, closing(open_one(str(tmp_path / "whole.sqlite"))) as whole:
        whole.fold(events_of(path))
        assert contents(killed) == contents(whole)
