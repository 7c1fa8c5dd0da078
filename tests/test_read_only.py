"""A container with a read-only root: the receiver needs no writable place but its data folder."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from conftest import RunningReceiver, wait_until
from support.pushes import event

READ_ONLY = 'mount --bind data data && mount -o remount,ro,bind / && {memory} cd / && exec "$@"'
CAN_MOUNT = subprocess.run(["unshare", "--mount", "true"], check=False, capture_output=True).returncode == 0
NO_BROKER = "mqtt://127.0.0.1:1"
SINKS = '[sinks.archive]\ntype = "csv"\npath = "data/events.csv"\n[sinks.db]\ntype = "sql"\nurl = "sqlite:///{folder}/data/e.sqlite"\n'


@pytest.mark.skipif(not CAN_MOUNT, reason="only root may mount")
@pytest.mark.parametrize("memory", ["", "mount -o remount,ro,bind /dev/shm &&"], ids=["memory", "no memory"])
def test_with_nothing_but_its_data_folder_writable_it_receives_and_delivers(memory: str, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    receiver = RunningReceiver(tmp_path, SINKS.format(folder=tmp_path), None, {"TMPDIR": "/tmp"})
    script = f"cd {tmp_path} && " + READ_ONLY.format(memory=memory).replace("cd /", f"cd {Path.cwd()}")
    receiver.command = ["unshare", "--mount", "sh", "-c", script, "sh", *receiver.command]
    try:
        receiver.start()
        assert receiver.push(event("a")) == (200, "accepted")
        wait_until(lambda: (tmp_path / "data" / "events.csv").exists(), what="the event in the CSV file")
        assert receiver.metric('receiver_pushes_total{code="200",result="accepted"}') == 1
        wait_until(
            lambda: receiver.metric('receiver_deliveries_total{sink="db"}') == 1, what="the event in the database"
        )
        assert "Traceback" not in receiver.log
    finally:
        receiver.kill_all()


@pytest.mark.skipif(not CAN_MOUNT, reason="only root may mount")
def test_without_a_folder_for_temporary_files_the_mqtt_sink_connects(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    receiver = RunningReceiver(
        tmp_path, f'[sinks.home]\ntype = "mqtt"\nurl = "{NO_BROKER}"\n', None, {"TMPDIR": "/tmp"}
    )
    script = f"cd {tmp_path} && " + READ_ONLY.format(memory="").replace("cd /", f"cd {Path.cwd()}")
    receiver.command = ["unshare", "--mount", "sh", "-c", script, "sh", *receiver.command]
    try:
        receiver.start()
        wait_until(lambda: "sink home is paused" in receiver.log, what="a connection that is refused")
        assert "Connection refused" in receiver.log
    finally:
        receiver.kill_all()
