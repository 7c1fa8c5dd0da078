"""deploy/README.md, followed command by command on a machine of its own: backups, and a move to PostgreSQL."""

from __future__ import annotations

import shutil

import pytest
from conftest import wait_until
from support.box import LATER, Box, box, installed, rows

__all__ = ["box", "installed"]


@pytest.mark.skipif(shutil.which("sqlite3") is None, reason="sqlite3 is not installed")
def test_a_backup_is_restored_with_what_was_pending(installed: Box) -> None:
    installed.run(f"printf '%s' '{LATER}' >> /etc/receiver/config.toml")
    installed.run("systemctl restart receiver")
    installed.wait_until_ready()
    installed.run("sudo receiver send http://localhost:8000/ --type touch --count 3")
    pending = 'receiver_pending_deliveries{sink="later"} '
    wait_until(lambda: f"{pending}3.0" in installed.run("curl -s localhost:8000/metrics"), what="pending deliveries")
    wait_until(lambda: rows(installed) == 3, what="the rows")
    installed.follow("Back up and restore")
    installed.run("sudo receiver send http://localhost:8000/ --type touch --count 2")
    installed.follow("Back up and restore", 1)
    installed.wait_until_ready()
    assert f"{pending}3.0" in installed.run("curl -s localhost:8000/metrics")
    installed.run("sudo receiver send http://localhost:8000/ --type touch")
    wait_until(lambda: rows(installed) == 6, what="the rows of all events, once")


def test_before_a_move_to_postgresql_the_journal_is_emptied(installed: Box) -> None:
    installed.run("sudo receiver send http://localhost:8000/ --type touch --count 3")
    assert "nothing is pending at the enabled sinks" in installed.follow("PostgreSQL")
    assert rows(installed) == 3
