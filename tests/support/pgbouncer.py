"""PgBouncer in transaction mode (Debian's package pgbouncer), in front of a test's PostgreSQL."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import mkdtemp

import psycopg
import pytest
from sqlalchemy import make_url

from chaos.pair import own, user
from receiver.testing.running import wait_until

CONFIG = """
[databases]
{database} = host={host} port=5432 user=postgres
[pgbouncer]
listen_addr =
unix_socket_dir = {folder}
auth_type = any
pool_mode = transaction
default_pool_size = 2
ignore_startup_parameters = options
"""


@contextlib.contextmanager
def pooled(url: str) -> Iterator[str]:
    """The URL of a database by way of a pooler that shares two server connections among all clients."""
    program = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        if os.environ.get("CI") == "true":
            pytest.fail("pgbouncer is not installed")
        pytest.skip("pgbouncer is not installed")
    direct = make_url(url)
    folder = Path(mkdtemp(prefix="receiver-pgbouncer-"))
    config = CONFIG.format(database=direct.database, host=direct.query["host"], folder=folder)
    (folder / "pgbouncer.ini").write_text(config, encoding="utf-8")
    own(folder)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([program, folder / "pgbouncer.ini"], stdout=log, stderr=log, user=user())
    through = direct.set(query={"host": str(folder), "port": "6432"}).render_as_string(hide_password=False)

    def responds() -> bool:
        with contextlib.suppress(psycopg.Error):
            psycopg.connect(through).close()
            return True
        return False

    try:
        wait_until(responds, what="pgbouncer")
        yield through
    finally:
        process.terminate()
        process.wait(10)
        shutil.rmtree(folder, ignore_errors=True)
