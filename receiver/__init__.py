"""The receiver: signed events from Disruptive Technologies sensors in, every enabled sink fed.

What plugins need is here; everything else is found in the module that does it.
"""

from receiver.errors import GiveUp, Pause, Retry
from receiver.event import Event, Reading
from receiver.hookspecs import hookimpl
from receiver.settings import Secret

__all__ = ["Event", "GiveUp", "Pause", "Reading", "Retry", "Secret", "hookimpl"]
__version__ = "0.1.0"
