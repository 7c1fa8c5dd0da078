"""The receiver: accepts signed events from Disruptive Technologies sensors and delivers each to every enabled sink.

Plugins import what they need from here; everything else is internal.
"""

from receiver.errors import GiveUp, Pause, Retry
from receiver.event import Event, Reading
from receiver.folders import flush_folder, make_folder
from receiver.hookspecs import Register, hookimpl
from receiver.settings import Secret

__all__ = [
    "Event",
    "GiveUp",
    "Pause",
    "Reading",
    "Register",
    "Retry",
    "Secret",
    "flush_folder",
    "hookimpl",
    "make_folder",
]
__version__ = "0.1.0"
