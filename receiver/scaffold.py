"""The beginning of a sink: a plugin file and its test, which pass as they stand and teach by their comments."""

from __future__ import annotations

import keyword
import re
import sys
from collections.abc import Collection
from pathlib import Path
from string import Template

from receiver.errors import ReceiverError

PLUGIN = Template('''\
"""The `$name` sink: writes each event to a file of its own. Say here what yours does."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from receiver import Event, hookimpl


@dataclass
class $cls:
    """Writes the raw body of each event to a file that is named after its id.

    folder: where to; made when it is missing.
    """

    # The fields are the options of [sinks.NAME] in config.toml. Their types are checked, one without a default is
    # required, and `python -m receiver sinks` shows what the docstring says of each. Relative paths count from
    # config.toml. Give a password or a token the type Secret (from receiver) and read it with get_secret_value().
    folder: Path

    @hookimpl
    def open(self, name: str, logger: logging.Logger) -> None:
        # Called once, before the first event. What touches the disk or the network belongs here and not into the
        # constructor: if it raises, the sink is paused and opened again later.
        self.folder.mkdir(parents=True, exist_ok=True)
        logger.info("sink %s writes to %s", name, self.folder)

    @hookimpl
    def deliver(self, event: Event, attempt: int) -> None:
        # Coming back means delivered, so come back only when the event is safe, and let every error out: the event is
        # then tried again, with longer and longer pauses. `raise Retry(after=60)` says when, `Pause("why", after=600)`
        # that no event should come for a while, `GiveUp("why")` that this one can never be delivered.
        # Use time-outs: nobody can end a call from outside.
        #
        # An event that was delivered can come again, with a higher `attempt`: after a crash, the receiver does not know
        # that it was. Make that harmless. Here, the same file is written with the same content.
        unfinished = self.folder / f"{event.id}.part"
        with unfinished.open("wb") as file:
            file.write(event.body)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(self.folder / f"{event.id}.json")

    @hookimpl
    def close(self) -> None:
        # Called once, after the last event. Remove it if there is nothing to close.
        pass


@hookimpl
def register_sinks(register: Callable[[str, type], None]) -> None:
    register("$name", $cls)
''')

TEST = Template('''\
"""The `$name` sink. To run these tests: make test TESTS=tests/test_$name.py"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from plugins.$name import $cls
from receiver.testing import SinkSuite, event


class Test$cls(SinkSuite, plugin="plugins/$name.py", options={"folder": "events"}):
    """What every sink should stand: each test of the suite is a rule. `options` are those of [sinks.NAME]."""

    @pytest.fixture
    def arrived(self, tmp_path: Path) -> Callable[[], list[str]]:
        # The ids of all events at the destination, read back. With it the suite sees that none is missing.
        return lambda: [path.stem for path in (tmp_path / "events").glob("*.json")]


def test_an_event_is_written_byte_for_byte(tmp_path: Path) -> None:
    # What your own sink does with an event. `event` makes one of any type, with the fields and labels you want.
    wet = event("waterPresent", state="PRESENT", labels={"name": "Cellar"})
    sink = $cls(folder=tmp_path / "out")
    sink.open("$name", logging.getLogger("test"))
    sink.deliver(wet, attempt=1)
    sink.close()
    assert [path.read_bytes() for path in (tmp_path / "out").iterdir()] == [wet.body]
''')

ROOT = Path(__file__).parent.parent
TAKEN = ("Callable", "Event", "Path")
"""What the two files import, and a class cannot be called."""


def new_sink(name: str, types: Collection[str]) -> tuple[Path, Path]:
    """Write the plugin and the test of a new sink type; their paths. `types` are the names that are taken.

    Raises ReceiverError when the name cannot be used, and then writes nothing. Nothing is ever overwritten.
    """
    check_name(name)
    plugin, test = ROOT / "plugins" / f"{name}.py", ROOT / "tests" / f"test_{name}.py"
    if name in types:
        raise ReceiverError(f"there is a sink type '{name}' already; choose another name")
    for path in (plugin, plugin.with_suffix(""), test):
        if path.exists():
            raise ReceiverError(f"{path.relative_to(ROOT)} is there already; choose another name")
    written: list[Path] = []
    names = {"name": name, "cls": class_name(name)}
    try:
        for path, text in ((plugin, PLUGIN), (test, TEST)):
            path.parent.mkdir(exist_ok=True)
            with path.open("x", encoding="utf-8") as file:
                written.append(path)
                file.write(text.substitute(names))
    except OSError as error:
        for half_done in written:
            half_done.unlink()
        raise ReceiverError(f"{path.relative_to(ROOT)} cannot be written: {error.strerror}") from None
    return plugin, test


def check_name(name: str) -> None:
    """Raise ReceiverError when a module, a class and a sink type cannot have this name."""
    if keyword.iskeyword(name):
        raise ReceiverError(f"'{name}' is a word of Python's own; choose another name")
    if not re.fullmatch("[a-z][a-z0-9_]{0,40}", name):
        near = re.sub("[^a-z0-9]+", "_", name.lower()).strip("_")
        hint = f" (did you mean '{near}'?)" if near != name and near.isidentifier() else ""
        raise ReceiverError(f"'{name}' cannot be the name of a module: use a-z, 0-9 and _, a letter first{hint}")
    if class_name(name) in TAKEN or keyword.iskeyword(class_name(name)):
        raise ReceiverError(f"'{name}' would make a class {class_name(name)}, which is taken; try '{name}_sink'")
    if name in sys.stdlib_module_names:
        raise ReceiverError(f"'{name}' is a module of Python's standard library; try '{name}_sink'")


def class_name(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))
