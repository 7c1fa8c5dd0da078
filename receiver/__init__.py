"""The receiver: accepts signed events from Disruptive Technologies sensors and delivers each to every enabled sink.

Plugins import what they need from here; everything else is internal.
"""

from receiver.errors import GiveUp, Pause, Retry
from receiver.event import Event, Reading
from receiver.hookspecs import hookimpl
from receiver.incident import Incident
from receiver.settings import Secret

__all__ = ["Event", "GiveUp", "Incident", "Pause", "Reading", "Retry", "Secret", "hookimpl"]
__version__ = "0.1.0"
