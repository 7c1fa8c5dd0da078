"""The hooks of a sink: which implementations are valid, and what each gets."""

from __future__ import annotations

import logging

import pytest
from support.plugins import DELIVER, IMPORTS, REGISTER, PluginFolder, object_behind, touch_event


def test_a_hook_gets_the_arguments_that_it_declares(plugin_folder: PluginFolder) -> None:
    hooks = """
class Mine:
    def __init__(self):
        self.got = []
    @hookimpl
    def open(self, logger):
        self.got.append(logger.name)
    @hookimpl
    def deliver_batch(self, attempts, events):
        self.got.append((attempts, [event.type for event in events]))
    @hookimpl
    def close(self):
        self.got.append("closed")
"""
    plugin_folder.add(IMPORTS + hooks + REGISTER)
    sink = plugin_folder.build_sink()
    assert (sink.name, sink.in_batches, object_behind(sink).got) == ("a", True, [])
    sink.hook.open(name="a", logger=logging.getLogger("sink.a"))
    sink.hook.deliver_batch(events=[touch_event()], attempts=[4])
    sink.hook.close()
    assert object_behind(sink).got == ["sink.a", ([4], ["touch"]), "closed"]


@pytest.mark.parametrize(
    ("code", "line"),
    [
        (
            "class Mine:\n    pass\n",
            "Mine must implement exactly one of deliver and deliver_batch, marked with @hookimpl",
        ),
        (
            "class Mine:\n" + DELIVER + "    @hookimpl\n    def deliver_batch(self, events):\n        pass\n",
            "Mine must implement exactly one of deliver and deliver_batch, marked with @hookimpl",
        ),
        (
            "class Mine:\n    def deliver(self, event):\n        pass\n",
            "mine.py:5: mark deliver with @hookimpl, or give it another name",
        ),
        (
            "class Mine:\n" + DELIVER + "    def open(self, name):\n        pass\n",
            "mine.py:8: mark open with @hookimpl, or give it another name",
        ),
        (
            "class Mine:\n    @hookimpl\n    def delivr(self, event):\n        pass\n",
            "mine.py:5: there is no hook 'delivr' (did you mean 'deliver'?)",
        ),
        (
            "class Mine:\n    @hookimpl\n    def shutdown(self):\n        pass\n" + DELIVER,
            "mine.py:5: there is no hook 'shutdown'",
        ),
        (
            "class Mine:\n    @hookimpl\n    def deliver(self, evnt):\n        pass\n",
            "mine.py:5: deliver has no argument 'evnt' (did you mean 'event'?); it can have: event, attempt",
        ),
        (
            "class Mine:\n" + DELIVER + "    @hookimpl\n    def close(self, why):\n        pass\n",
            "mine.py:8: close has no argument 'why'; it has none",
        ),
        (
            "class Mine:\n    @hookimpl\n    def deliver(event):\n        pass\n",
            "mine.py:5: deliver lacks self as its first argument",
        ),
        (
            "class Mine:\n" + DELIVER + "    @hookimpl\n    def close():\n        pass\n",
            "mine.py:8: close lacks self as its first argument",
        ),
        (
            "class Base:\n    @hookimpl\n    def deliver(event, attempt):\n        pass\nclass Mine(Base):\n    pass\n",
            "mine.py:5: deliver lacks self as its first argument",
        ),
        (
            "class Mine:\n    @hookimpl\n    async def deliver(self, event):\n        pass\n",
            "mine.py:5: deliver must be a plain function: no async, no yield",
        ),
        (
            "class Mine:\n    @hookimpl\n    def deliver(self, event):\n        yield\n",
            "mine.py:5: deliver must be a plain function: no async, no yield",
        ),
        (
            "class Mine:\n    @hookimpl\n    async def deliver(self, event):\n        yield\n",
            "mine.py:5: deliver must be a plain function: no async, no yield",
        ),
        (
            "class Mine:\n    @hookimpl\n    async def deliver_batch(self, events):\n        pass\n",
            "mine.py:5: deliver_batch must be a plain function: no async, no yield",
        ),
        (
            "class Mine:\n" + DELIVER + "    @hookimpl\n    async def open(self):\n        pass\n",
            "mine.py:8: open must be a plain function: no async, no yield",
        ),
        (
            "class Mine:\n" + DELIVER + "    @hookimpl\n    def close(self):\n        yield\n",
            "mine.py:8: close must be a plain function: no async, no yield",
        ),
        (
            "class Mine:\n" + DELIVER + "    @hookimpl\n    async def sink_paused(self, sink):\n        pass\n",
            "mine.py:8: sink_paused must be a plain function: no async, no yield",
        ),
    ],
    ids=[
        *("neither deliver nor deliver_batch", "both", "unmarked deliver", "unmarked open", "misspelt", "unknown"),
        *("misspelt argument", "argument too many", "no self", "no self and no argument", "no self in a base class"),
        *("coroutine", "generator", "asynchronous generator", "coroutine of a batch"),
        *("coroutine that opens", "generator that closes", "coroutine for an alert"),
    ],
)
def test_an_invalid_hook_is_reported_in_one_line_and_the_other_sinks_are_built(
    code: str, line: str, plugin_folder: PluginFolder
) -> None:
    plugin_folder.add(IMPORTS + code + REGISTER)
    assert plugin_folder.problem() == f"config.toml [sinks.a]: {line}"


@pytest.mark.parametrize(
    "deliver",
    [
        "@hookimpl\n    def deliver(this, event):",
        "@staticmethod\n    @hookimpl\n    def deliver(event):",
        "@classmethod\n    @hookimpl\n    def deliver(cls, event):",
    ],
    ids=["self by another name", "static method", "class method"],
)
def test_an_unusual_but_valid_deliver_is_called(deliver: str, plugin_folder: PluginFolder) -> None:
    plugin_folder.add(f"{IMPORTS}GOT = []\nclass Mine:\n    {deliver}\n        GOT.append(event.type)\n{REGISTER}")
    sink = plugin_folder.build_sink()
    sink.hook.deliver(event=touch_event(), attempt=1)
    assert sink.hook.deliver.get_hookimpls()[0].function.__globals__["GOT"] == ["touch"]
