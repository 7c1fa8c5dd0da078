"""`new-sink`: the first version of a plugin and its test. Both work as written, and are explained in comments."""

from __future__ import annotations

import keyword
import re
import sys
from collections.abc import Collection
from pathlib import Path
from string import Template

from receiver.delivery.plugins import INSTALLED
from receiver.errors import ReceiverError

PLUGIN = Template('''\
"""The `$name` sink: writes each event to a file of its own. Describe your sink here."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

from receiver import Event, Register, flush_folder, hookimpl, make_folder


@dataclass
class $cls:
    """Writes the raw body of each event to a file that is named after the event's id.

    folder: where to; created if it is missing.
    """

    # The fields are the options of [sinks.NAME] in config.toml. Their types are checked, those without a default are
    # required, and `python -m receiver sinks` shows what the docstring says about each. Relative paths count from the
    # folder of config.toml. For a password or a token use the type Secret (from receiver), and get_secret_value().
    folder: Path

    @hookimpl
    def open(self, name: str, logger: logging.Logger) -> None:
        # Called once, before the first delivery. Connect and open files here, not in the constructor: if this raises,
        # the sink is paused, and open is called again at the end of the pause.
        make_folder(self.folder)  # unlike mkdir, it makes sure that the folder survives a power cut
        logger.info("sink %s writes to %s", name, self.folder)

    @hookimpl
    def deliver(self, event: Event, attempt: int) -> None:
        # Returning normally means delivered: return only when the event is safe at the destination, and let every error
        # out. The event is then retried with backoff. `raise Retry(after=60)` sets when, `Pause("why", after=600)`
        # pauses the whole sink, and `GiveUp("why")` never delivers this event. Set timeouts: calls cannot be cancelled.
        #
        # Delivery is at least once: after a crash, an event that was delivered can come again, with a higher `attempt`.
        # Make this method idempotent by event.id. Here, the same file is written again with the same content.
        unfinished = self.folder / f"{event.id}.part"
        with unfinished.open("wb") as file:
            file.write(event.body)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(self.folder / f"{event.id}.json")
        flush_folder(self.folder)  # or a power cut could remove the file, whose event counts as delivered

    @hookimpl
    def close(self) -> None:
        # Called once, after the last delivery. Remove this method if there is nothing to close.
        pass

    @hookimpl
    def local_path(self) -> Path:
        # The file or folder on this machine that holds the events. Remove this method if they are stored elsewhere.
        return self.folder


@hookimpl
def register_sinks(register: Register) -> None:
    register("$name", $cls)
''')

TEST = Template('''\
"""The `$name` sink. Run these tests with: make test TESTS=tests/test_$name.py"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from plugins.$name import $cls
from receiver.testing import SinkSuite, event


class Test$cls(SinkSuite, plugin="plugins/$name.py", options={"folder": "events"}):
    """The tests that every sink should pass. `options` are those of [sinks.NAME]."""

    @pytest.fixture
    def delivered_ids(self, tmp_path: Path) -> Callable[[], list[str]]:
        # Returns the ids of all events at the destination, so that the suite can check that none is missing.
        return lambda: [path.stem for path in (tmp_path / "events").glob("*.json")]


def test_writes_the_body_unchanged(tmp_path: Path) -> None:
    # What your sink does with an event. `event` makes one of any type, with the fields and labels that you want.
    wet = event("waterPresent", state="PRESENT", labels={"name": "Cellar"})
    sink = $cls(folder=tmp_path / "out")
    sink.open("$name", logging.getLogger("test"))
    sink.deliver(wet, attempt=1)
    sink.close()
    assert [path.read_bytes() for path in (tmp_path / "out").iterdir()] == [wet.body]
''')

ROOT = Path(__file__).parent.parent
IMPORTED_NAMES = ("Callable", "Event", "Path", "Register", "SinkSuite")
"""The classes that the two files import."""


def new_sink(name: str, types: Collection[str], root: Path = ROOT) -> tuple[Path, Path]:
    """Write the plugin and the test of a new sink type; their paths. `types` are the names of existing sink types.

    Raises ReceiverError if the name cannot be used, and then writes nothing. Never overwrites a file.
    """
    if INSTALLED:
        raise ReceiverError("new-sink needs a checkout of the receiver, and this is an installed package")
    check_name(name)
    plugin, test = root / "plugins" / f"{name}.py", root / "tests" / f"test_{name}.py"
    if name in types:
        raise ReceiverError(f"sink type '{name}' already exists; choose another name")
    for path in (plugin, plugin.with_suffix(""), test):
        if path.exists():
            raise ReceiverError(f"{path.relative_to(root)} already exists; choose another name")
    created: list[Path] = []
    names = {"name": name, "cls": class_name(name)}
    try:
        for path, text in ((plugin, PLUGIN), (test, TEST)):
            path.parent.mkdir(exist_ok=True)
            with path.open("x", encoding="utf-8") as file:
                created.append(path)
                file.write(text.substitute(names))
    except OSError as error:
        for incomplete in created:
            incomplete.unlink()
        raise ReceiverError(f"{path.relative_to(root)} cannot be written: {error.strerror}") from None
    return plugin, test


def check_name(name: str) -> None:
    """Raise ReceiverError if a module, a class and a sink type cannot have this name."""
    if keyword.iskeyword(name):
        raise ReceiverError(f"'{name}' is a keyword of Python; choose another name")
    if not re.fullmatch("[a-z][a-z0-9_]{0,40}", name):
        near = re.sub("[^a-z0-9]+", "_", name.lower()).strip("_")
        hint = f" (did you mean '{near}'?)" if near != name and near.isidentifier() else ""
        raise ReceiverError(f"'{name}' is not a valid module name: use a-z, 0-9 and _, beginning with a letter{hint}")
    cls = class_name(name)
    if cls in IMPORTED_NAMES or keyword.iskeyword(cls):
        raise ReceiverError(f"the class of '{name}' would be called {cls}, which is in use; try '{name}_sink'")
    if cls.startswith("Test"):
        raise ReceiverError(f"pytest would take the class of '{name}', {cls}, for tests; choose another name")
    if name in sys.stdlib_module_names:
        raise ReceiverError(f"'{name}' is a module of Python's standard library; try '{name}_sink'")


def class_name(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))
