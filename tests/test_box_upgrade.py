"""deploy/README.md, followed command by command on a machine of its own: upgrades."""

from __future__ import annotations

import re

from conftest import wait_until
from support.box import LATER, Box, box, installed, rows

from receiver import __version__

__all__ = ["box", "installed"]


def test_an_upgrade_changes_no_settings_restarts_the_receiver_and_can_be_undone(installed: Box) -> None:
    installed.run("sed -i 's/2000 /3000 /' /etc/receiver/config.toml; cp /etc/receiver/config.toml /mnt/before")
    installed.change_upstream("""sed -i 's/max_size_mb = 2000/max_size_mb = 1000/' config.toml deploy/config.toml
        sed -i 's/__version__ = .*/__version__ = "9.9.9"/' receiver/__init__.py""")
    pid = installed.run("cat /mnt/pid")
    shown = installed.follow("Upgrade")
    upgraded = re.search(r"^Upgraded from (\w+) to \w+\. Restarting\.$", shown, re.MULTILINE)
    assert upgraded
    installed.wait_until_ready()
    assert installed.run("cat /mnt/pid") != pid
    assert "9.9.9" in installed.run("curl -s localhost:8000/metrics")
    installed.run("cmp /etc/receiver/config.toml /mnt/before")
    installed.follow("Upgrade", 1, VERSION=upgraded[1])
    installed.wait_until_ready()
    assert f'version="{__version__}"' in installed.run("curl -s localhost:8000/metrics")


FAILURES = {
    "max_size_mb": r"sed -i '/max_size_mb: /s/ge=1/ge=5000/' receiver/settings.py",
    "no-such-package": "echo 'no-such-package==1' >> requirements.txt",
    "SyntaxError": "sed -i 's/^import/imp ort/' receiver/settings.py",
    "Not upgraded": "sed -i 's/^set -eu/exit 7/' deploy/receiver",
}
"""What an upgrade shows of a change that cannot be installed or does not fit the settings."""


def test_an_upgrade_that_fails_puts_the_old_version_back_which_runs_on(installed: Box) -> None:
    before = installed.run("cat /mnt/pid; cd /opt/receiver; git rev-parse HEAD")
    for reason, change in FAILURES.items():
        installed.change_upstream(change)
        shown = installed.run("sudo /opt/receiver/deploy/upgrade", code=1)
        assert reason in shown
        assert shown.endswith("Not upgraded: it failed for the reason above. The receiver runs on as it was.\n")
        assert installed.run("cat /mnt/pid; cd /opt/receiver; git rev-parse HEAD; git status --short") == before
        installed.change_upstream("git reset --quiet --hard HEAD~1")
    installed.run("sudo receiver check")
    installed.run("sudo receiver send http://localhost:8000/ --type touch")


def test_an_upgrade_that_finds_a_change_of_ones_own_in_its_way_changes_nothing(installed: Box) -> None:
    installed.run("echo '# mine' >> /opt/receiver/config.toml")
    before = installed.run("cd /opt/receiver; git rev-parse HEAD; git status --short; tail -n 1 config.toml")
    installed.change_upstream("echo '# theirs' >> config.toml")
    assert "config.toml" in installed.run("sudo /opt/receiver/deploy/upgrade", code=1)
    shown = installed.run("cd /opt/receiver; git rev-parse HEAD; git status --short; tail -n 1 config.toml")
    assert shown == before


OLD_UNIT = """[Service]
User=receiver
WorkingDirectory=/opt/receiver
EnvironmentFile=/etc/receiver.env
ExecStartPre=/opt/receiver/.venv/bin/python -m receiver migrate
ExecStart=/opt/receiver/.venv/bin/python -m receiver serve
"""
OLD_INSTALL = """
useradd --system --home /opt/receiver receiver
git clone {upstream} /opt/receiver
make -s -C /opt/receiver venv
cd /opt/receiver && mkdir data && chown receiver data && cd /
sed -i 's/^# host = .*/host = "127.0.0.1"/' /opt/receiver/config.toml
printf '%s' '{later}' >> /opt/receiver/config.toml
printf 'DT_SIGNATURE_SECRET=7c8f4e1f9a0b4d3e8c5a6b7d\\nPORT=8000\\n' > /etc/receiver.env
printf '%s' '{unit}' > /etc/systemd/system/receiver.service
systemctl enable --now /etc/systemd/system/receiver.service
"""


def test_settings_and_journal_of_a_version_that_had_them_in_its_folder_are_moved(box: Box) -> None:
    box.run(box.with_packages(OLD_INSTALL.format(upstream=box.upstream, unit=OLD_UNIT, later=LATER)))
    box.wait_until_ready()
    send = (
        "set -a; . /etc/receiver.env; .venv/bin/python -m receiver send http://localhost:8000/ --type touch --count 3"
    )
    box.run(f"cd /opt/receiver; ({send})")
    pending = 'receiver_pending_deliveries{sink="later"} '
    wait_until(lambda: f"{pending}3.0" in box.run("curl -s localhost:8000/metrics"), what="pending deliveries")
    box.change_upstream("sed -i 's/^# deliver = true/# deliver = true ,/' config.toml")
    box.follow("From a version without /etc/receiver")
    box.wait_until_ready()
    assert f"{pending}3.0" in box.run("curl -s localhost:8000/metrics")
    box.run("sudo receiver send http://localhost:8000/ --type touch")
    wait_until(lambda: rows(box) == 4, what="the rows before and after")
    assert box.run("ls /opt/receiver/data 2>&1", None).startswith("ls: ")
    assert box.run("cd /opt/receiver && git status --short") == ""
    box.follow("Upgrade")
