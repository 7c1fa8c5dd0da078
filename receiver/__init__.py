"""The receiver: accepts signed events from Disruptive Technologies sensors and delivers each to every enabled sink.

Plugins import what they need from here; everything else is internal.
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036  # this file is valid in any Python, so that an old one can say so
    sys.exit("the receiver needs Python 3.11 or newer; " + sys.executable + " is " + sys.version.split()[0])

try:
    from receiver.errors import GiveUp, Pause, Retry, collect_errors
    from receiver.event import Event, Reading
    from receiver.folders import flush_folder, make_folder
    from receiver.hookspecs import Register, hookimpl
    from receiver.incident import Incident
    from receiver.postgresql_url import postgresql_parameters
    from receiver.settings import Secret
except ModuleNotFoundError as error:
    if (error.name or "receiver").startswith("receiver"):
        raise
    sys.exit(
        str(error.name) + " is not installed for " + sys.executable + "; run `make venv`, and use .venv/bin/python"
    )

__all__ = [
    "Event",
    "GiveUp",
    "Incident",
    "Pause",
    "Reading",
    "Register",
    "Retry",
    "Secret",
    "collect_errors",
    "flush_folder",
    "hookimpl",
    "make_folder",
    "postgresql_parameters",
]
__version__ = "0.1.0"
