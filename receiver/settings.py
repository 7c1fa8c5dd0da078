"""config.toml and the environment, read once into typed settings.

Every problem is found in one go, and each names its place, what is wrong and the nearest right name. What intake
needs must be right; a faulty `[sinks.NAME]` is kept with its fault, so that a typo in one sink never stops receiving.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from receiver.errors import ConfigError
from receiver.event import Event
from receiver.options import AnyModel, Fault, Number, Seconds, Table, Whole, nearest, salvage, texts

SECRET = "DT_SIGNATURE_SECRET"
WEAK_SECRET_BYTES = 32
SINK_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


class ReceiverTable(Table):
    """[receiver]: what concerns the program as a whole."""

    host: str = "0.0.0.0"
    threads: Whole = Field(32, ge=1, le=512)
    max_body: Whole = Field(256 * 1024, ge=1024, le=16 * 1024 * 1024)
    log_format: Literal["text", "json"] = "text"
    plugins: Annotated[tuple[str, ...], texts("plugins/mine.py")] = ()
    deliver: bool = True
    legacy_sha1: bool = False
    metrics_token: SecretStr | None = Field(default=None, min_length=8)


class JournalTable(Table):
    """[journal]: where events are kept, how long, and how full it may get."""

    path: Path = Path("data/journal.sqlite")
    retention_days: Number = Field(7, ge=1)
    min_free_mb: Whole = Field(100, ge=0)
    max_size_mb: Whole | None = Field(default=None, ge=1)


class Filter(Table):
    """[sinks.NAME.filter]: which events a sink gets. All given conditions must hold."""

    event_types: Annotated[tuple[str, ...], texts("humidity")] | None = None
    devices: Annotated[tuple[str, ...], texts("emucd8v2lh6000000000")] | None = None
    projects: Annotated[tuple[str, ...], texts("c8v2lh6000000000000")] | None = None
    labels: Mapping[str, str] = Field(default_factory=dict)
    backfilled: bool | None = None

    def misses(self, event: Event) -> list[str]:
        """The conditions that `event` does not meet; empty when the sink gets it."""
        met = {
            "event_types": self.event_types is None or event.type in self.event_types,
            "devices": self.devices is None or event.device_id in self.devices,
            "projects": self.projects is None or event.project_id in self.projects,
            "labels": all(event.labels.get(key) == value for key, value in self.labels.items()),
            "backfilled": self.backfilled is None or event.backfilled is self.backfilled,
        }
        return [condition for condition, holds in met.items() if not holds]


class RetryPolicy(Table):
    """[sinks.NAME.retry]: how long and how often a delivery is tried before it is dead. Times in seconds."""

    max_age: Seconds = 3 * 86400.0
    max_attempts: Whole | None = Field(default=None, ge=1)
    first_pause: Seconds = 5.0
    longest_pause: Seconds = 3600.0


class CommonOptions(BaseModel):
    """The keys that every `[sinks.NAME]` understands; all others belong to the sink type."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    type: str
    enabled: bool = True
    filter: Filter = Field(default_factory=Filter)
    retry: RetryPolicy = Field(default_factory=RetryPolicy)
    concurrency: Whole = Field(1, ge=1, le=64)
    batch_size: Whole = Field(500, ge=1, le=10_000)


@dataclass(frozen=True)
class SinkSettings:
    """One `[sinks.NAME]`. `options` are the sink type's own; `faults` say why the table cannot be used as it is.

    `missing` are the keys whose environment variable is not set; they have their line in `faults`.
    """

    name: str
    common: CommonOptions
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    from_environment: frozenset[str] = frozenset()
    faults: tuple[str, ...] = ()
    missing: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Settings:
    """Everything the receiver was told. `hidden` are the values that no log line may contain."""

    path: Path
    receiver: ReceiverTable
    journal: JournalTable
    sinks: tuple[SinkSettings, ...]
    port: int
    workers: int
    secrets: Mapping[str, str] = field(repr=False)
    hidden: set[str] = field(repr=False)
    database_url: str | None = field(default=None, repr=False)
    on_dyno: bool = False

    @property
    def folder(self) -> Path:
        """Where relative paths count from: the folder of config.toml."""
        return self.path.parent

    @property
    def enabled_sinks(self) -> tuple[SinkSettings, ...]:
        return tuple(sink for sink in self.sinks if sink.common.enabled)

    @property
    def journal_path(self) -> Path:
        return self.folder / self.journal.path

    def weak(self) -> list[str]:
        """What works, and is hardly meant: secrets that can be guessed, and events that go nowhere."""
        found = [
            f"{name} is shorter than {WEAK_SECRET_BYTES} bytes; a longer one is harder to guess"
            for name, secret in self.secrets.items()
            if len(secret.encode()) < WEAK_SECRET_BYTES
        ]
        if not self.enabled_sinks:
            found.append(f"no sink is enabled in {self.path.name}: events are journaled and go nowhere")
        return found

    def at_risk(self) -> list[str]:
        """What a Heroku dyno would lose: its disk does not outlive it."""
        if not self.on_dyno:
            return []
        found = []
        if self.database_url is None:
            found.append(
                "the journal is on the dyno's disk, and events that are still owed are lost with it at each restart; "
                "run `heroku addons:create heroku-postgresql:essential-0`"
            )
        found += [
            f"sink {sink.name} writes to the dyno's disk, and its file is lost at each restart; "
            f'have one of type = "sql" with url = {{ env = "DATABASE_URL" }} in place of [sinks.{sink.name}]'
            for sink in self.enabled_sinks
            if sink.common.type == "csv" or (sink.common.type == "sql" and _is_file(sink.options.get("url")))
        ]
        return found

    def hide(self, values: Iterable[str]) -> None:
        """Let `redact` hide these as well: what is secret among a sink's options is known only with its class."""
        self.hidden.update(_worth_hiding(values))
        self.__dict__.pop("_hidden_forms", None)

    def redact(self, text: str) -> str:
        """`text` without any secret, however it is written there: for messages that other people's code has made."""
        return self._hidden_forms.sub("***", text) if self.hidden else text

    @cached_property
    def _hidden_forms(self) -> re.Pattern[str]:
        parts = {part for value in self.hidden for part in (value.strip(), *_parts_of_url(value)) if len(part) >= 4}
        return re.compile("|".join(_any_form(part) for part in sorted(parts, key=len, reverse=True)) or "(?!)")


def _is_file(url: object) -> bool:
    return str(url).startswith("sqlite")


def _worth_hiding(values: Iterable[str]) -> set[str]:
    """Secrets with the passwords of those that are URLs, without what is too short to be one."""
    passwords = {value: _password(value) for value in values}
    found = {form for value, password in passwords.items() for form in (value, password, unquote(password))}
    return {form for form in found if len(form) >= 4}


def _parts_of_url(value: str) -> list[str]:
    """What libraries for HTTP show of a URL that is a secret: path with query, and the password."""
    if not re.match("https?://", value):
        return []
    try:
        parts = urlsplit(value)
    except ValueError:
        return []
    return [part for part in (parts._replace(scheme="", netloc="").geturl(), parts.password or "") if len(part) >= 8]


def _any_form(secret: str) -> str:
    """A pattern for a secret as it is, and as repr, JSON, URLs and messages of one line write it."""
    return "".join(_any_form_of(part) for part in re.findall(r"\s+|\\+|.", secret))


def _any_form_of(part: str) -> str:
    if part.isspace():
        return r"(?:[\s|]|\\{1,8}(?:[nrtvf]|x[0-9a-f]{2})|%[0-9a-fA-F]{2}|\+){1,64}"
    if part.startswith("\\"):
        return r"(?:\\|%5[Cc]){1,64}"
    if part.isascii() and part.isalnum():
        return part
    utf_16, utf_8 = part.encode("utf-16-be", "surrogatepass").hex(), part.encode("utf-8", "surrogatepass").hex()
    written = [rf"\\{{0,8}}{re.escape(part)}", rf"\\{{1,8}}x{ord(part):02x}", rf"\\{{1,8}}U{ord(part):08x}"]
    written.append("".join(rf"\\{{1,8}}u{unit}" for unit in re.findall("....", utf_16)))
    written += ["".join(rf"{before}{byte}" for byte in re.findall("..", utf_8)) for before in (r"\\{1,8}x", "%")]
    return f"(?i:{'|'.join(written)})"


def load(environ: Mapping[str, str] = os.environ, *, secret_required: bool = True) -> Settings:
    """Read the file that RECEIVER_CONFIG names (default config.toml) and the environment.

    Raises ConfigError with every problem found, when one of them concerns more than a single sink.
    """
    settings, problems = survey(environ, secret_required=secret_required)
    if problems:
        raise ConfigError([*problems, *(fault for sink in settings.sinks for fault in sink.faults)])
    return settings


def survey(environ: Mapping[str, str] = os.environ, *, secret_required: bool = True) -> tuple[Settings, list[str]]:
    """Like `load`, with what could be understood and the problems that concern more than a single sink.

    Raises ConfigError when there is no file, or nothing can be understood in it.
    """
    path = Path(environ.get("RECEIVER_CONFIG") or "config.toml").absolute()
    document = _read(path)
    problems = [
        f"{path.name}: no table [{name}]{nearest(name, ('receiver', 'journal', 'sinks'))}"
        for name in document
        if name not in ("receiver", "journal", "sinks")
    ]
    reader = _Reader(path.name, environ, problems)
    receiver = reader.table(ReceiverTable, "receiver", document.get("receiver", {}))
    journal = reader.table(JournalTable, "journal", document.get("journal", {}))
    sinks = tuple(reader.sinks(document.get("sinks", {})))
    secrets = _secrets(environ)
    if secret_required and SECRET not in secrets:
        problems.append(f"environment: {SECRET} is not set; set it to the signature secret of your Data Connector")
    port = _whole_number(environ, "PORT", 8000, 65535, problems)
    workers = _whole_number(environ, "WEB_CONCURRENCY", 2, 64, problems)
    problems += [
        f"environment: {name} is not UTF-8; set it to a signature secret as DT shows it"
        for name, value in secrets.items()
        if not _is_text(value)
    ]
    token = receiver.metrics_token.get_secret_value() if receiver.metrics_token else ""
    database_url = environ.get("DATABASE_URL") or None
    hidden = _worth_hiding([*secrets.values(), *reader.looked_up, token, database_url or ""])
    return Settings(
        path, receiver, journal, sinks, port, workers, secrets, hidden, database_url, bool(environ.get("DYNO"))
    ), problems


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        remedy = "start in the folder of your config.toml, or name the file in RECEIVER_CONFIG"
        raise ConfigError([f"{path}: no such file; {remedy}"]) from None
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from None
    except (ValueError, RecursionError) as error:  # not TOML, not UTF-8, a number too long, nested too deeply
        raise ConfigError([f"{path.name}: not valid TOML: {error}"]) from None


def _secrets(environ: Mapping[str, str]) -> dict[str, str]:
    """Signature secrets by the name of their variable; an empty one counts as not set."""
    return {
        name: value
        for name, value in sorted(environ.items())
        if value and (name == SECRET or name.startswith(f"{SECRET}_"))
    }


def _password(url: str) -> str:
    try:
        return urlsplit(url).password or ""
    except ValueError:
        return ""


def _is_text(value: str) -> bool:
    """Whether a value of the environment was text: what was not holds surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in value)


def _whole_number(environ: Mapping[str, str], name: str, default: int, most: int, problems: list[str]) -> int:
    text = environ.get(name) or str(default)
    if re.fullmatch("[0-9]{1,9}", text) and 1 <= int(text) <= most:
        return int(text)
    problems.append(f"environment: {name} must be a whole number from 1 to {most}")
    return default


class _Reader:
    """Turns tables into models; collects the problems and the environment values met on the way."""

    def __init__(self, file: str, environ: Mapping[str, str], problems: list[str]) -> None:
        self.file = file
        self.environ = environ
        self.problems = problems
        self.looked_up: set[str] = set()

    def table(self, model: type[AnyModel], name: str, given: object) -> AnyModel:
        where = f"{self.file} [{name}]"
        if not isinstance(given, dict):
            self.problems.append(f"{where}: must be a table")
            return model()
        values, from_environment, missing = self.look_up(where, given)
        parsed, faults = salvage(model, where, values, from_environment, missing)
        self.problems += [fault.line for fault in faults]
        return parsed

    def sinks(self, given: object) -> Iterable[SinkSettings]:
        if not isinstance(given, dict):
            self.problems.append(f"{self.file} [sinks]: must hold tables such as [sinks.archive]")
            return
        for name, values in given.items():
            if SINK_NAME.fullmatch(name) and isinstance(values, dict):
                yield self.sink(name, values)
            else:
                self.problems.append(
                    f"{self.file} [sinks.{name}]: must be a table named with 1 to 64 letters, digits, '_' or '-'"
                )

    def sink(self, name: str, values: dict[str, Any]) -> SinkSettings:
        """One sink; whatever is wrong with it is its own fault, and it stays enabled and owed its events."""
        where = f"{self.file} [sinks.{name}]"
        asked = {key: value for key, value in values.items() if key != "filter" and values.get("enabled") is not False}
        found, from_environment, missing = self.look_up(where, asked)
        given = {**{key: value for key, value in values.items() if key not in asked}, **found}
        common, faults = salvage(CommonOptions, where, given, from_environment, missing, {"type": ""})
        return SinkSettings(
            name,
            common,
            {key: value for key, value in given.items() if key not in CommonOptions.model_fields},
            from_environment,
            tuple(fault.line for fault in faults),
            frozenset(fault.key for fault in missing),
        )

    def look_up(self, where: str, given: dict[str, Any]) -> tuple[dict[str, Any], frozenset[str], list[Fault]]:
        """Replace each `{ env = "NAME" }`: the values, the keys that were touched, and the missing ones."""
        missing: list[Fault] = []
        touched: set[str] = set()

        def resolve(key: str, path: str, value: Any) -> Any:
            if isinstance(value, list):
                return [resolve(key, path, item) for item in value]
            if not isinstance(value, dict):
                return value
            if value.keys() != {"env"}:
                return {name: resolve(key, f"{path}.{name}", item) for name, item in value.items()}
            touched.add(key)
            found = self.environ.get(str(value["env"]))
            if found is None:
                missing.append(Fault(key, f"{where}: {path}: the environment variable {value['env']} is not set"))
                return None
            self.looked_up.add(found)
            return found

        values = {key: resolve(key, key, value) for key, value in given.items()}
        unset = {fault.key for fault in missing}
        present = {key: value for key, value in values.items() if key not in unset}
        return present, frozenset(touched), missing


Secret = SecretStr
"""An option that must not be seen: hidden in `repr` and `str`, read with `get_secret_value()`."""
