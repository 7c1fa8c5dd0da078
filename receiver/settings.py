"""config.toml and the environment, read once into typed, frozen settings.

All problems are reported together, each with its place, what is wrong and the closest valid name. What intake needs
must be valid; an invalid `[sinks.NAME]` is loaded with its problems, so that a typo in one sink never stops receiving.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr

from receiver.config_file import read_toml
from receiver.environment import read_variable
from receiver.errors import ConfigError
from receiver.event import Event
from receiver.listener import valid_host
from receiver.validation import (
    NO_NUL,
    AnyModel,
    Flag,
    FromEnvironment,
    Number,
    Problem,
    Seconds,
    Table,
    Whole,
    list_of_text,
    nearest,
    parse_leniently,
)
from receiver.variables import ISSUER, ISSUER_URL, ApiAccess, Variables

SINK_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
TABLES = ("receiver", "journal", "sensors", "sinks")
SENSORS = "sensors"
"""The sink that feeds the registry of sensors: no [sinks.NAME] can have its name."""

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

HEROKU_ROUTER = ("10.0.0.0/8",)
"""Where Heroku's router connects from. Nothing else reaches a dyno."""


def valid_networks(texts: tuple[str, ...]) -> tuple[str, ...]:
    for text in texts:
        try:
            ipaddress.ip_network(text)
        except ValueError:
            raise ValueError(f"{text!r} is not an address or a network such as 10.0.0.0/8") from None
    return texts


Networks = Annotated[tuple[str, ...], list_of_text(HEROKU_ROUTER[0]), AfterValidator(valid_networks)]


def not_blank(secret: SecretStr) -> SecretStr:
    if not secret.get_secret_value().strip():
        raise ValueError("it is blank")
    return secret


def registry_url(url: SecretStr) -> SecretStr:
    if not url.get_secret_value().startswith(("sqlite:///", "postgres://", "postgresql://")):
        raise ValueError("it must begin with sqlite:/// or postgresql://")
    if "\0" in url.get_secret_value():
        raise ValueError(NO_NUL)
    return url


class ReceiverTable(Table):
    """[receiver]: the program as a whole."""

    host: Annotated[str, AfterValidator(valid_host)] = "0.0.0.0"
    max_body_bytes: Whole = Field(default=256 * 1024, ge=1024, le=16 * 1024 * 1024)
    log_format: Literal["text", "json"] = "text"
    plugins: Annotated[tuple[str, ...], list_of_text("plugins/mine.py")] = ()
    deliver: Flag = True
    legacy_sha1: Flag = False
    trusted_proxies: Networks | None = None
    metrics_token: Annotated[SecretStr, Field(min_length=8), AfterValidator(not_blank)] | None = None


class JournalTable(Table):
    """[journal]: where events are stored, for how long, and how much space they may take."""

    path: Path = Path("data/journal.sqlite")
    retention_days: Number = Field(default=7, ge=1)
    min_free_mb: Whole = Field(default=100, ge=0)
    max_size_mb: Whole | None = Field(default=None, ge=1)


class SensorsTable(Table):
    """[sensors]: what the receiver knows of each sensor, and when a sensor counts as silent."""

    enabled: Flag = True
    url: Annotated[SecretStr, AfterValidator(registry_url)] | None = None
    history_days: Number = Field(default=31, ge=8, le=400)
    silent_after: Number = Field(default=4, ge=2, le=100)
    settle: Seconds = 120.0
    backfill: Flag = False


class Filter(Table):
    """[sinks.NAME.filter]: which events a sink gets. All given conditions must hold."""

    event_types: Annotated[tuple[str, ...], list_of_text("humidity")] | None = None
    devices: Annotated[tuple[str, ...], list_of_text("emucd8v2lh6000000000")] | None = None
    projects: Annotated[tuple[str, ...], list_of_text("c8v2lh6000000000000")] | None = None
    labels: Mapping[str, str] = Field(default_factory=dict)
    backfilled: Flag | None = None
    origin: Literal["push", "history"] | None = None

    def misses(self, event: Event) -> list[str]:
        """The conditions that `event` does not meet; empty if the sink gets it."""
        met = {
            "event_types": self.event_types is None or event.type in self.event_types,
            "devices": self.devices is None or event.device_id in self.devices,
            "projects": self.projects is None or event.project_id in self.projects,
            "labels": all(event.labels.get(key) == value for key, value in self.labels.items()),
            "backfilled": self.backfilled is None or event.backfilled is self.backfilled,
            "origin": self.origin is None or event.origin == self.origin,
        }
        return [condition for condition, holds in met.items() if not holds]


class RetryPolicy(Table):
    """[sinks.NAME.retry]: how long and how often a delivery is attempted before it is dead. Times in seconds."""

    max_age: Seconds = 3 * 86400.0
    max_attempts: Whole | None = Field(default=None, ge=1)
    initial_backoff: Seconds = 5.0
    max_backoff: Seconds = 3600.0


class CommonOptions(BaseModel):
    """The keys that every `[sinks.NAME]` has; all others belong to the sink type."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    type: str
    enabled: Flag = True
    filter: Filter = Field(default_factory=Filter)
    retry: RetryPolicy = Field(default_factory=RetryPolicy)
    concurrency: Whole = Field(default=1, ge=1, le=64)
    batch_size: Whole = Field(default=500, ge=1, le=10_000)


@dataclass(frozen=True)
class SinkSettings:
    """One `[sinks.NAME]`. `options` belong to the sink type; `problems` say why the table cannot be used as it is.

    `from_environment` are the keys with a value from the environment, `missing` those whose variable is not set, or
    whose file cannot be used; the latter have a line in `problems` as well. An invalid filter is not used: only its
    valid conditions are known.
    """

    name: str
    common: CommonOptions
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    from_environment: frozenset[str] = frozenset()
    problems: tuple[str, ...] = ()
    missing: frozenset[str] = frozenset()
    filter_is_valid: bool = True


@dataclass(frozen=True)
class Settings:
    """Everything from config.toml and the environment. `secret_values` must not appear in any log line or page.

    `organizations` are the ids of those whose pushes are verified by the keys of `issuer`; none: only by secrets.
    `unused_variables` begin like a signature secret, and are none.
    """

    path: Path
    receiver: ReceiverTable
    journal: JournalTable
    sinks: tuple[SinkSettings, ...]
    port: int
    workers: int
    secrets: Mapping[str, str] = field(repr=False)
    secret_values: frozenset[str] = field(repr=False)
    organizations: frozenset[str] = field(default=frozenset(), repr=False)
    issuer: str = ISSUER
    database_url: str | None = field(default=None, repr=False)
    on_dyno: bool = False
    unused_variables: tuple[str, ...] = ()
    sensors: SensorsTable = field(default_factory=SensorsTable)
    api: ApiAccess = field(default_factory=ApiAccess)
    console_passwords: Mapping[str, str] = field(default_factory=dict, repr=False)
    """By user: `admin`, without which there is no console, and `viewer`."""

    @property
    def folder(self) -> Path:
        """The folder of config.toml, from which relative paths count."""
        return self.path.parent

    @property
    def all_sinks(self) -> tuple[SinkSettings, ...]:
        """The sinks of config.toml, and the receiver's own, which feeds the registry of sensors."""
        own = SinkSettings(SENSORS, CommonOptions(type=SENSORS))
        return (*self.sinks, own) if self.sensors.enabled else self.sinks

    @property
    def trusted_proxies(self) -> tuple[Network, ...]:
        """The networks of proxies whose X-Forwarded-For is believed; by default on a dyno, Heroku's router."""
        given = self.receiver.trusted_proxies
        texts = (HEROKU_ROUTER if self.on_dyno else ()) if given is None else given
        return tuple(map(ipaddress.ip_network, texts))

    @property
    def enabled_sinks(self) -> tuple[SinkSettings, ...]:
        """Those of all sinks that events are routed to."""
        return tuple(sink for sink in self.all_sinks if sink.common.enabled)

    @property
    def journal_path(self) -> Path:
        return self.folder / self.journal.path


def load(
    environ: Mapping[str, str] = os.environ, *, secret_required: bool = True, file_required: bool = True
) -> Settings:
    """Read the file that RECEIVER_CONFIG names (default config.toml) and the environment.

    Raises ConfigError with all problems, if one of them concerns more than a single sink. Unless `file_required`, a
    missing config.toml that RECEIVER_CONFIG does not name counts as empty.
    """
    settings, problems = load_with_problems(environ, secret_required=secret_required, file_required=file_required)
    if problems:
        raise ConfigError([*problems, *(problem for sink in settings.sinks for problem in sink.problems)])
    return settings


def load_with_problems(
    environ: Mapping[str, str] = os.environ, *, secret_required: bool = True, file_required: bool = True
) -> tuple[Settings, list[str]]:
    """Like `load`, but returns what is valid together with the problems that concern more than a single sink.

    Raises ConfigError if the file is missing or is not TOML.
    """
    path = _config_path(environ)
    document = read_toml(path, required=file_required or bool(environ.get("RECEIVER_CONFIG")))
    problems = [f"{path.name}: no table [{name}]{nearest(name, TABLES)}" for name in document if name not in TABLES]
    reader = _Reader(path.name, environ, problems)
    receiver = reader.table(ReceiverTable, "receiver", document.get("receiver", {}))
    journal = reader.table(JournalTable, "journal", document.get("journal", {}))
    sensors = reader.table(SensorsTable, "sensors", document.get("sensors", {}))
    sinks = tuple(reader.sinks(document.get("sinks", {})))
    variables = Variables(environ)
    organizations = variables.organizations()
    issuer = variables.secure_url(ISSUER_URL, ISSUER)
    api = variables.api_access()
    secrets = (variables if secret_required else Variables(environ)).secrets(required=organizations == frozenset())
    database_url = variables.value("DATABASE_URL") or None
    passwords = variables.console_passwords()
    port = variables.whole_number("PORT", 8000, 65535)
    workers = variables.whole_number("WEB_CONCURRENCY", 2, 64)
    in_file = [each.get_secret_value() for each in (receiver.metrics_token, sensors.url) if each]
    hidden = [*secrets.values(), *(organizations or ()), *reader.environment_values, *passwords.values(), *in_file]
    settings = Settings(
        path,
        receiver,
        journal,
        sinks,
        port,
        workers,
        secrets,
        secret_values=frozenset([*hidden, *filter(None, (database_url, api.key_id, api.secret))]),
        organizations=organizations or frozenset(),
        issuer=issuer,
        database_url=database_url,
        on_dyno=bool(environ.get("DYNO")),
        unused_variables=variables.unused(),
        sensors=sensors,
        api=api,
        console_passwords=passwords,
    )
    return settings, problems + variables.problems


def _config_path(environ: Mapping[str, str]) -> Path:
    try:
        return Path(environ.get("RECEIVER_CONFIG") or "config.toml").absolute()
    except FileNotFoundError:
        remedy = "start in the folder of your config.toml, or name the file with its full path in RECEIVER_CONFIG"
        raise ConfigError([f"the current folder does not exist any more; {remedy}"]) from None


class _Reader:
    """Turns tables into models; collects the problems, and the values that came from the environment."""

    def __init__(self, file: str, environ: Mapping[str, str], problems: list[str]) -> None:
        self.file = file
        self.environ = environ
        self.problems = problems
        self.environment_values: set[str] = set()

    def table(self, model: type[AnyModel], name: str, given: object) -> AnyModel:
        where = f"{self.file} [{name}]"
        if not isinstance(given, dict):
            self.problems.append(f"{where}: must be a table")
            return model()
        values, from_environment, missing = self.resolve_environment(where, given)
        parsed, problems = parse_leniently(model, where, values, from_environment, missing)
        self.problems += [problem.line for problem in problems]
        return parsed

    def sinks(self, given: object) -> Iterable[SinkSettings]:
        if not isinstance(given, dict):
            self.problems.append(f"{self.file} [sinks]: must contain tables such as [sinks.archive]")
            return
        for name, values in given.items():
            if name == SENSORS:
                self.problems.append(
                    f"{self.file} [sinks.{name}]: this name is that of the receiver's own sink; rename the table, or "
                    "set up the registry of sensors in [sensors]"
                )
            elif SINK_NAME.fullmatch(name) and isinstance(values, dict):
                yield self.sink(name, values)
            else:
                self.problems.append(
                    f"{self.file} [sinks.{name}]: must be a table named with 1 to 64 letters, digits, '_' or '-'"
                )

    def sink(self, name: str, values: dict[str, Any]) -> SinkSettings:
        """One sink; a problem in its table concerns this sink alone, which stays enabled while its events wait."""
        where = f"{self.file} [sinks.{name}]"
        disabled = values.get("enabled") is False
        to_resolve = {} if disabled else {key: value for key, value in values.items() if key != "filter"}
        resolved, from_environment, missing = self.resolve_environment(where, to_resolve)
        given = {**{key: value for key, value in values.items() if key not in to_resolve}, **resolved}
        common, problems = parse_leniently(CommonOptions, where, given, from_environment, missing, {"type": ""})
        filter_is_valid = all(problem.key != "filter" for problem in problems)
        if not filter_is_valid and isinstance(given["filter"], dict):
            conditions, _ = parse_leniently(Filter, where, given["filter"], frozenset(), ())
            common = common.model_copy(update={"filter": conditions})
        return SinkSettings(
            name,
            common,
            {key: value for key, value in given.items() if key not in CommonOptions.model_fields},
            from_environment,
            tuple(problem.line for problem in problems),
            frozenset(problem.key for problem in missing),
            filter_is_valid,
        )

    def resolve_environment(
        self, where: str, given: dict[str, Any]
    ) -> tuple[dict[str, Any], frozenset[str], list[Problem]]:
        """Replace each `{ env = "NAME" }`: the values, the keys that had one, and a problem for each one without."""
        missing: list[Problem] = []
        replaced: set[str] = set()

        def resolve(key: str, path: str, value: Any) -> Any:
            if isinstance(value, list):
                return [resolve(key, path, item) for item in value]
            if not isinstance(value, dict):
                return value
            if value.keys() != {"env"}:
                return {name: resolve(key, f"{path}.{name}", item) for name, item in value.items()}
            replaced.add(key)
            try:
                found = read_variable(self.environ, str(value["env"]))
            except ConfigError as error:
                missing.append(Problem(key, f"{where}: {path}: {error}"))
                return None
            if found is None:
                missing.append(Problem(key, f"{where}: {path}: the environment variable {value['env']} is not set"))
                return None
            self.environment_values.add(found)
            return FromEnvironment(found)

        values = {key: resolve(key, key, value) for key, value in given.items()}
        unset = {problem.key for problem in missing}
        present = {key: value for key, value in values.items() if key not in unset}
        return present, frozenset(replaced), missing


Secret = SecretStr
"""The type of a secret option: hidden in `repr` and `str`, read with `get_secret_value()`."""
