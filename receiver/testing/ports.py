"""Ports for servers that tests start."""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path

PORTS = range(20_000, 32_000)
"""Below the ports that Linux and macOS choose for outgoing connections."""

_reserved: list[int] = []


def reserve_port() -> int:
    """A free port, reserved until this process ends: no other test process gets it, even if nothing listens there."""
    folder = Path(f"/tmp/receiver-ports-{os.getuid()}")  # the same for all processes, whatever their TMPDIR is
    folder.mkdir(exist_ok=True)
    for port in PORTS:
        lock = os.open(folder / str(port), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        if _locks(lock) and _is_free(port):
            _reserved.append(lock)
            return port
        os.close(lock)
    raise RuntimeError("all ports for tests are reserved")


def _locks(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("0.0.0.0", port))
        except OSError:
            return False
    return True
