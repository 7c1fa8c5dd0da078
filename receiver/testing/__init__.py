"""For those who write sinks: events to try them with, and a suite of tests that any sink should pass.

    from receiver.testing import SinkSuite, event

    class TestAlarm(SinkSuite, plugin="plugins/alarm.py"):
        pass

`receiver.testing.fixtures` is a pytest plugin with a running receiver, signed pushes and a clock. All of this needs
what stands in requirements-dev.txt; the receiver itself never imports it.
"""

import pytest

from receiver.testing.network import hanging, refused
from receiver.testing.running import wait_until
from receiver.testing.samples import TEST_SECRET, event, events, odd_texts, unknown_events

pytest.register_assert_rewrite("receiver.testing.suite")  # before it is imported, or its asserts show no values

from receiver.testing.suite import SinkSuite  # noqa: E402

__all__ = [
    "TEST_SECRET",
    "SinkSuite",
    "event",
    "events",
    "hanging",
    "odd_texts",
    "refused",
    "unknown_events",
    "wait_until",
]
