"""Where in a plugin's own file a problem is, to begin a message with: `alarm.py:12: `, or `alarm/__init__.py:12: `."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import sys
import traceback
import typing
from collections.abc import Callable
from pathlib import Path

import pluggy
import pydantic

from receiver.errors import PluginError
from receiver.redaction import error_text

annotationlib = sys.modules.get("annotationlib")  # imported by `inspect` since Python 3.14
NOT_OF_PLUGINS = (
    "<",
    str(Path(__file__).parent.parent),
    *(str(Path(str(module.__file__)).parent) for module in (importlib, pluggy, pydantic)),
    *(str(module.__file__) for module in (inspect, typing, dataclasses, annotationlib) if module),
)
"""Beginnings of file names of the frames between the dispatcher and a plugin."""


def line_and_text(error: BaseException, redact: Callable[[str], str], cls: type | None = None) -> str:
    """An exception from a plugin in one line without secrets, with the line of the plugin's file that it came from.

    If that is unknown, it is the line where `cls`, which the exception is about, begins.
    """
    if isinstance(error, PluginError):
        return str(error)
    if isinstance(error, SyntaxError) and error.filename and not error.filename.startswith("<"):
        return f"{_shown(error.filename)}:{error.lineno}: {type(error).__name__}: {error.msg}"
    line = line_that_raised(error) or (line_of_class(cls) if cls else "")
    return line + error_text(error, redact)


def line_that_raised(error: BaseException) -> str:
    """The line of a plugin's own file that an exception came from; empty if unknown."""
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(NOT_OF_PLUGINS)
    ]
    own = [frame for frame in frames if frame.filename == frames[0].filename]
    return f"{_shown(own[-1].filename)}:{own[-1].lineno}: " if own else ""


def line_of_function(function: object) -> str:
    """The line where a function of a plugin begins; empty if unknown."""
    code = getattr(inspect.unwrap(function), "__code__", None) if callable(function) else None
    return f"{_shown(code.co_filename)}:{code.co_firstlineno}: " if code else ""


def line_of_class(cls: type) -> str:
    """The line where a class with its decorators begins; empty if unknown."""
    try:
        return f"{_shown(inspect.getfile(cls))}:{inspect.getsourcelines(cls)[1]}: "
    except Exception:
        return ""


def _shown(file: str) -> str:
    """A file's name, with that of its folder for a package's `__init__.py`."""
    path = Path(file)
    return f"{path.parent.name}/{path.name}" if path.name == "__init__.py" else path.name
