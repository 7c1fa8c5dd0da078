"""The Dockerfile, step by step: no container engine is needed, only root. The image's own base is not tried."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import PurePosixPath

import pytest
from conftest import ROOT, wait_until
from support.box import Box, box, environment

__all__ = ["box"]

STEPS = [
    (line.split(maxsplit=1)[0], line.split(maxsplit=1)[1])
    for line in (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
]
READ_ONLY = """
mount --bind {volume} {volume}
mount -t tmpfs tmpfs /dev/shm
for at in / /etc /opt /mnt /run /root /tmp /usr/local/bin /var/lib /var/log; do
    mountpoint -q $at && mount -o remount,ro,bind $at
done
"""
UNPRIVILEGED = "setpriv --reuid {uid} --regid {uid} --clear-groups --bounding-set=-all --no-new-privs"


def given(instruction: str) -> str:
    """The text of an instruction that the Dockerfile has once."""
    (text,) = [text for name, text in STEPS if name == instruction]
    return text


def command(instruction: str) -> str:
    """A command in JSON, for a shell."""
    return shlex.join(json.loads(given(instruction).partition("CMD ")[2] or given(instruction)))


def build(box: Box) -> None:
    """Run the steps of the Dockerfile; `COPY` takes only what .dockerignore lets in."""
    box.run(environment("/mnt/venv") + """ && PATH="/mnt/venv/bin:$PATH" """)
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for instruction, text in STEPS:
        if instruction == "WORKDIR":
            box.run(f"mkdir -p {text} && cd {text}")
        elif instruction == "COPY":
            source, target = text.split()
            assert source in let_in
            box.run(f"mkdir -p {PurePosixPath(target).parent} && cp -r {box.upstream / source} {target}")
        elif instruction == "RUN":
            box.run(f"sh -ec {shlex.quote(text)}")
        else:
            assert instruction in ("FROM", "ENV", "USER", "VOLUME", "EXPOSE", "HEALTHCHECK", "CMD")


def run_container(box: Box, uid: str) -> None:
    """Start the command as process 1, with a read-only root but for the volume, and without any privilege."""
    box.run(READ_ONLY.format(volume=given("VOLUME")))
    variables = f"env -i PATH=$PATH DT_SIGNATURE_SECRET=7c8f4e1f9a0b4d3e8c5a6b7d7c8f4e1f9a0b4d3e {given('ENV')}"
    box.run(f'inside="{UNPRIVILEGED.format(uid=uid)} {variables}"')
    log = f"{given('VOLUME')}/log"
    box.run(f"unshare --pid --fork --mount-proc $inside {command('CMD')} > {log} 2>&1 < /dev/null & engine=$!")
    wait_until(lambda: is_healthy(box), 60, what="a healthy container")


def is_healthy(box: Box) -> bool:
    return box.run(f"$inside {command('HEALTHCHECK')} > /dev/null 2>&1; echo $?") == "0\n"


@pytest.mark.parametrize("uid", [given("USER").partition(":")[0], "54321"], ids=["user", "unknown user"])
def test_it_receives_and_delivers_with_a_read_only_root_and_stops_in_time(uid: str, box: Box) -> None:
    build(box)
    volume = given("VOLUME")
    if uid not in given("USER"):
        box.run(f"chown {uid}:{uid} {volume}")
    assert box.run(f"getent passwd {uid}", 2) == ""
    run_container(box, uid)
    box.run("$inside python -m receiver check")
    box.run("$inside python -m receiver send http://localhost:8000/ --type touch --count 3")
    wait_until(lambda: box.run(f"cat {volume}/events-*.csv | wc -l") == "4\n", what="the rows")
    box.run("kill -TERM $(pgrep -P $engine); wait $engine")
    log = box.run(f"cat {volume}/log")
    assert len(re.findall(r'^\{"event_id":', log, re.MULTILINE)) == 3
    assert "stopping on SIGTERM" in log
    assert "Traceback" not in log
    assert box.run(f"find {volume} -user {uid} -name journal.sqlite") == f"{volume}/journal.sqlite\n"


def test_without_a_receiver_it_is_not_healthy(box: Box) -> None:
    build(box)
    box.run("inside=")
    assert not is_healthy(box)


def test_compose_gives_the_container_what_the_image_expects() -> None:
    compose = (ROOT / "compose.yaml").read_text(encoding="utf-8")
    receiver = compose.partition("\n  receiver:\n")[2].partition("\n\n")[0]
    for line in (
        "read_only: true",
        "cap_drop: [ALL]",
        "env_file: .env",
        f"- receiver:{given('VOLUME')}",
        f"- ./receiver.toml:{given('ENV').split()[0].partition('=')[2]}:ro",
        "stop_grace_period: 30s",
    ):
        assert f"\n      {line}\n" in f"{receiver}\n" or f"\n    {line}\n" in f"{receiver}\n", line
    assert f"reverse_proxy receiver:{given('EXPOSE')}" in (ROOT / "deploy" / "Caddyfile").read_text()
