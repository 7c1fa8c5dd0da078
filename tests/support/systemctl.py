#!/usr/bin/env python3
"""`systemctl` of a test's box: runs the service of a unit file as systemd would, and nginx."""

import configparser
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

STATE = Path("/mnt")
"""Where the path of the unit, the pid of the service and its log are."""

READ_ONLY = (
    "mount --bind {state} {state} && "
    "for at in / /etc /opt /mnt /var/lib /var/log; do mount -o remount,ro,bind $at; done"
)
"""ProtectSystem=strict with a StateDirectory."""


def service() -> configparser.SectionProxy:
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(STATE.joinpath("unit").read_text())
    return unit["Service"]


def environment(unit: configparser.SectionProxy) -> list[str]:
    lines = [unit.get("Environment", ""), *Path(unit["EnvironmentFile"]).read_text().splitlines()]
    return [shlex.split(line)[0] for line in lines if line]


def start() -> None:
    unit = service()
    sandbox: list[str] = []
    if "StateDirectory" in unit:
        state = f"/var/lib/{unit['StateDirectory']}"
        subprocess.run(["install", "-d", "-o", unit["User"], "-g", unit["User"], state], check=True)
        sandbox = ["unshare", "--mount", "sh", "-c", READ_ONLY.format(state=state) + ' && exec "$@"', "sh"]
    clean = ["env", "-i", f"PATH={os.environ['PATH']}", *environment(unit)]
    as_user = ["runuser", "-u", unit["User"], "--", *clean]
    with STATE.joinpath("log").open("ab") as log:
        folder = unit["WorkingDirectory"]
        subprocess.run(
            [*sandbox, *as_user, *unit["ExecStartPre"].split()], cwd=folder, check=True, stdout=log, stderr=log
        )
        process = subprocess.Popen(
            [*sandbox, "setpriv", f"--reuid={unit['User']}", f"--regid={unit['User']}", "--init-groups", *clean]
            + unit["ExecStart"].split(),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    STATE.joinpath("pid").write_text(str(process.pid))


def stop() -> None:
    pid = STATE / "pid"
    if pid.exists():
        process = int(pid.read_text())
        os.kill(process, signal.SIGTERM)
        while is_running(process):
            time.sleep(0.05)
        pid.unlink()


def is_running(process: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False


def main(verb: str, *arguments: str) -> None:
    if arguments[-1:] == ("nginx",):
        subprocess.run(["nginx"], check=True)
        return
    if verb == "enable":
        STATE.joinpath("unit").write_text(arguments[-1])
    if verb in ("disable", "stop", "restart"):
        stop()
    if verb in ("enable", "start", "restart"):
        start()


if __name__ == "__main__":
    main(*sys.argv[1:])
