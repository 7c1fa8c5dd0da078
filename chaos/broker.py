"""A real MQTT broker (Debian's package mosquitto) on loopback."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import mkdtemp

from receiver.testing.ports import reserve_port
from receiver.testing.running import wait_until

RUNNING = " running\n"
"""The end of what it logs when it has started."""


def find_mosquitto() -> str | None:
    """The program, which Debian has where only root looks for it. Raises AssertionError in CI if there is none."""
    program = shutil.which("mosquitto", path=f"{os.environ['PATH']}:/usr/sbin")
    assert program is not None or os.environ.get("CI") != "true", "mosquitto is not installed"
    return program


class Broker:
    """One broker in a folder of its own, which it keeps when it is killed. `config` is added to its configuration.

    With `verbose` it logs every packet.
    """

    def __init__(
        self, program: str, config: str = "allow_anonymous true", listener: str = "", *, verbose: bool = True
    ) -> None:
        self.folder = Path(mkdtemp(prefix="receiver-mosquitto-"))
        self.port = reserve_port()
        self.url = f"mqtt://127.0.0.1:{self.port}"
        self._command = [program, *["-v"] * verbose, "-c", str(self.folder / "mosquitto.conf")]
        self._process: subprocess.Popen[bytes] | None = None
        self.configure(config, listener)

    def configure(self, config: str, listener: str = "") -> None:
        """Replace what is in its configuration besides; effective from the next start."""
        common = f"user root\nlistener {self.port} 127.0.0.1\n{listener}\n"
        (self.folder / "mosquitto.conf").write_text(f"{common}{config}\n".replace("{folder}", str(self.folder)))

    def start(self) -> None:
        """Start it, and wait until it handles signals: it listens before, when a signal such as `save` would end it."""
        with (self.folder / "log").open("ab") as log:
            starts = self.log.count(RUNNING)
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, start_new_session=True)
        wait_until(lambda: self._is_running(starts), what="mosquitto")

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)

    def stop(self) -> None:
        """End it as a service manager does; with persistence it saves what it retains."""
        assert self._process is not None
        self._process.terminate()
        self._process.wait(10)

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """A context in which it neither reads nor writes, while its connections stay."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        yield
        self._process.send_signal(signal.SIGCONT)

    def save(self) -> None:
        """Write to its file what it has in memory, such as the subscriptions of clients that will come back."""
        assert self._process is not None
        self._process.send_signal(signal.SIGUSR1)

    def reload(self) -> None:
        """Read its files of users and permissions again."""
        assert self._process is not None
        self._process.send_signal(signal.SIGHUP)

    def restart(self) -> None:
        self.kill()
        self.start()

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def _is_running(self, starts: int) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log
        return self.log.count(RUNNING) > starts

    def remove(self) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)
