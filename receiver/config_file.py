"""Reads config.toml, and says what to do about an error of TOML."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

from receiver.environment import read_file
from receiver.errors import ConfigError

MAX_CONFIG_BYTES = 1024 * 1024
BARE = r"[^\s=,\[\]{}\"'#]*"
"""A value without quotes, as people write text into TOML."""
MISSPELT_BOOLEANS = ("true", "false", "yes", "no", "on", "off")


def read_toml(path: Path, *, required: bool) -> dict[str, Any]:
    """The tables of a file; none if it is missing and not `required`. Raises ConfigError, without any value in it."""
    try:
        content = read_file(path, MAX_CONFIG_BYTES)
        if len(content) > MAX_CONFIG_BYTES:
            raise ConfigError([f"{path}: has more than {MAX_CONFIG_BYTES} bytes; name a configuration file"])
        text = re.sub("\r\n?", "\n", content.decode("utf-8-sig"))
        return tomllib.loads(text)
    except FileNotFoundError:
        if not required:
            return {}
        remedy = "start in the folder of your config.toml, or name the file in RECEIVER_CONFIG"
        raise ConfigError([f"{path}: no such file; {remedy}"]) from None
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([f"{path.name}: not valid TOML: {error}{remedy_of(text, str(error))}"]) from None
    except (ValueError, RecursionError) as error:  # not UTF-8, a number too long, nested too deeply
        raise ConfigError([f"{path.name}: not valid TOML: {error}"]) from None


def remedy_of(text: str, error: str) -> str:
    """What to do about an error of TOML; empty if that is not known. It shows no value, which could be a secret."""
    place = re.search(r"\(at line (\d+), column (\d+)\)", error)
    if place is None:
        return ""
    line, column = text.split("\n")[int(place[1]) - 1], int(place[2]) - 1
    before, after = line[:column], line[column:]
    if error.startswith("Illegal character '\\n'"):
        return ": the quote at the end is missing"
    if error.startswith("Invalid value") and not after.partition("#")[0].strip():
        return ": the value is missing"
    if not error.startswith(("Invalid value", "Expected newline", "Unclosed array", "Unclosed inline table")):
        return ""
    word = re.findall(f"{BARE}$", before)[0] + re.findall(f"^{BARE}", after)[0]
    if word.lower() in MISSPELT_BOOLEANS:
        return ": give true or false, in small letters and without quotes"
    if not word or word.isdigit():
        return ""
    key = re.search(r"([A-Za-z0-9_-]+)\s*=\s*(\[?)[^={}]*$", before)
    wanted = '"…"' if key is None else f'{key[1]} = ["…"]' if key[2] else f'{key[1]} = "…"'
    return f": text needs quotes: {wanted}"
