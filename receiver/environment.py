"""A value from the environment: of a variable, or of the file that this variable with `_FILE` names.

The convention `NAME_FILE` holds for every value that may be secret: container platforms mount secrets as files.
"""

from __future__ import annotations

import errno
import os
import re
import select
import time
from collections.abc import Mapping
from pathlib import Path

from receiver.errors import ConfigError

MAX_FILE_BYTES = 65536
"""Far more than a secret has; a device or a log file named by mistake is not read to its end."""

PIPE_SECONDS = 5.0
"""How long to wait for all of a pipe."""


def read_variable(environ: Mapping[str, str], name: str) -> str | None:
    """The value of the variable `name`, or the text of the file that `name`_FILE names, without one trailing line end.

    None if neither is set. Raises ConfigError, with neither path nor content in it, if both are, or if the file cannot
    be used.
    """
    value, path = environ.get(name), environ.get(f"{name}_FILE")
    if not path:
        return value
    if value:
        raise ConfigError([f"{name} and {name}_FILE are both set; unset one of them"])
    return _read(path, f"{name}_FILE: the file that it names")


def read_file(path: str | Path, max_bytes: int) -> bytes:
    """The content of a file or a pipe, or one byte more than `max_bytes`. Raises OSError.

    A shell may pass a file as a pipe; one that has no writer must not block the start.
    """
    content = b""
    end = time.monotonic() + PIPE_SECONDS
    with open(path, "rb", buffering=0, opener=_open_at_once) as file:
        poll = select.poll()
        poll.register(file, select.POLLIN)
        while len(content) <= max_bytes:
            if not poll.poll(max(0.0, end - time.monotonic()) * 1000):
                raise TimeoutError(errno.ETIMEDOUT, f"nothing is written into this pipe for {PIPE_SECONDS:.0f} s")
            if not (part := file.read(max_bytes + 1 - len(content))):
                break
            content += part
    return content


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def _read(path: str, subject: str) -> str:
    try:
        content = read_file(path, MAX_FILE_BYTES)
        text = content.decode("utf-8-sig")
    except OSError as error:
        reason = f"cannot be read: {error.strerror}; correct the path, or let this user read the file"
    except UnicodeDecodeError:
        reason = "is not UTF-8; write the value as text in UTF-8"
    else:
        if len(content) > MAX_FILE_BYTES:
            reason = f"has more than {MAX_FILE_BYTES} bytes; it must hold nothing but the value"
        elif not text.strip():
            reason = "is empty; write the value into it"
        else:
            return re.sub(r"\r?\n\Z", "", text)
    raise ConfigError([f"{subject} {reason}"])
