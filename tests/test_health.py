"""What operators should know: what causes each warning and error, and its exact sentence."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import pytest

from receiver import health
from receiver.errors import JournalUnavailable
from receiver.health import Findings, Readiness, check_readiness, configuration_warnings
from receiver.journal import Arrival, Counts, Journal, Liveness, SinkCounts, SinkState, open_journal
from receiver.redaction import Redactor
from receiver.settings import Settings, load
from receiver.variables import SECRET

STRONG_SECRET = "s" * health.WEAK_SECRET_BYTES
SINKS = "[sinks.erp]\ntype = 'webhook'\n[sinks.off]\ntype = 'stdout'\nenabled = false\n"
JOURNAL_ON_DYNO = (
    "the journal is on the dyno's disk, which is lost at each restart together with all pending events; "
    "run `heroku addons:create heroku-postgresql:essential-0`"
)
DATABASE_URL = "postgresql://user:pass-word@db.example/journal"

LoadSettings = Callable[..., Settings]


@pytest.fixture
def load_settings(tmp_path: Path) -> LoadSettings:
    """Settings from the text of a config.toml and the environment."""

    def load_settings(config: str = SINKS, **environ: str) -> Settings:
        (tmp_path / "config.toml").write_text(config)
        return load({"RECEIVER_CONFIG": str(tmp_path / "config.toml"), SECRET: STRONG_SECRET, **environ})

    return load_settings


@dataclass
class Clock:
    """Stands in for the module `time`."""

    now: float = 1_000_000.0

    def time(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of receiver.health, stopped."""
    clock = Clock()
    monkeypatch.setattr(health, "time", clock)
    return clock


@dataclass
class FakeJournal:
    """A journal as `check_readiness` sees it; counts how often it is asked."""

    alive_at: float | None = 1_000_000.0
    dispatcher_warnings: tuple[str, ...] = ()
    states: Mapping[str, SinkState] = field(default_factory=dict)
    sinks: Mapping[str, SinkCounts] = field(default_factory=dict)
    unavailable: str = ""
    checks: int = 0

    def check_writable(self) -> None:
        self.checks += 1
        if self.unavailable:
            raise JournalUnavailable(self.unavailable)

    def liveness(self) -> Liveness | None:
        return None if self.alive_at is None else Liveness(self.alive_at, self.dispatcher_warnings)

    def sink_states(self) -> Mapping[str, SinkState]:
        return self.states

    def counts(self) -> Counts:
        return Counts(unrouted=0, quarantined=0, sinks=self.sinks, secrets={})


def shown(found: Findings) -> tuple[list[str], list[str]]:
    """The errors and the warnings of `/readyz`."""
    return [*found.errors], [*found.of_sinks, *found.warnings]


def readiness_of(settings: Settings, journal: FakeJournal) -> tuple[list[str], list[str]]:
    return shown(check_readiness(settings, cast(Journal, journal)))


def test_a_sound_configuration_has_no_warnings(load_settings: LoadSettings) -> None:
    assert configuration_warnings(load_settings()) == []


def test_each_secret_of_fewer_than_32_bytes_is_a_warning(load_settings: LoadSettings) -> None:
    secrets = {SECRET: "s" * 31, f"{SECRET}__OLD": "é" * 16, f"{SECRET}__OTHER": "é" * 15}
    assert configuration_warnings(load_settings(**secrets)) == [
        "DT_SIGNATURE_SECRET is shorter than 32 bytes; a longer one is harder to guess",
        "DT_SIGNATURE_SECRET__OTHER is shorter than 32 bytes; a longer one is harder to guess",
    ]


@pytest.mark.parametrize("config", ["", "[sinks.off]\ntype = 'stdout'\nenabled = false"], ids=["none", "disabled"])
def test_a_configuration_without_enabled_sinks_is_a_warning(config: str, load_settings: LoadSettings) -> None:
    assert configuration_warnings(load_settings(config)) == [
        "no sink is enabled in config.toml: events are stored but delivered nowhere"
    ]


def test_a_journal_on_the_disk_of_a_dyno_is_a_warning(load_settings: LoadSettings) -> None:
    assert configuration_warnings(load_settings(DYNO="web.1")) == [JOURNAL_ON_DYNO]
    assert configuration_warnings(load_settings(DYNO="web.1", DATABASE_URL=DATABASE_URL)) == []


def test_a_sink_with_a_file_on_the_disk_of_a_dyno_is_a_warning(load_settings: LoadSettings) -> None:
    paths = {"archive": Path("events.csv"), "erp": None}
    assert health.local_files(load_settings(), paths) == []
    assert health.local_files(load_settings(DYNO="web.1"), paths) == [
        "sink archive writes to the dyno's disk, and its file is lost at each restart; "
        'replace [sinks.archive] with one of type = "sql" and url = { env = "DATABASE_URL" }'
    ]


def store_events(settings: Settings, *event_ids: str, routed_to: dict[str, list[str]]) -> None:
    """Store events in the SQLite journal, and route some of them."""
    with closing(open_journal(settings)) as journal:
        journal.accept([Arrival(event_id, b"", 1000.0) for event_id in event_ids])
        routes = [(event, routed_to[event.id]) for event in journal.unrouted(100) if event.id in routed_to]
        journal.route(routes)


def test_pending_deliveries_and_unrouted_events_in_a_journal_that_a_database_has_replaced_are_a_warning(
    load_settings: LoadSettings, tmp_path: Path
) -> None:
    store_events(load_settings(), "a", "b", routed_to={"a": ["erp", "other"]})
    assert configuration_warnings(load_settings(DATABASE_URL=DATABASE_URL)) == [
        f"the journal {tmp_path}/data/journal.sqlite is not used while DATABASE_URL is set, and has 2 pending "
        "deliveries; run `python -m receiver deliver --until-empty` without DATABASE_URL"
    ]
    assert configuration_warnings(load_settings()) == []


def test_a_replaced_journal_is_no_warning_when_nothing_is_pending_or_it_cannot_be_read(
    load_settings: LoadSettings,
) -> None:
    replaced = load_settings(DATABASE_URL=DATABASE_URL)
    assert configuration_warnings(replaced) == []
    assert not replaced.journal_path.exists()
    store_events(load_settings(), "a", routed_to={"a": []})
    assert configuration_warnings(replaced) == []
    replaced.journal_path.write_bytes(b"This is a text file and not a journal. " * 100)
    assert configuration_warnings(replaced) == []


def test_a_paused_sink_that_is_enabled_is_a_warning_with_its_reason(
    load_settings: LoadSettings, stopped: Clock
) -> None:
    states = [
        SinkState("erp", pauses=1, pause_reason="HTTP 503"),
        SinkState("off", pauses=1, pause_reason="HTTP 503"),
        SinkState("removed", pauses=1, pause_reason="HTTP 503"),
    ]
    journal = FakeJournal(states={state.name: state for state in states})
    assert readiness_of(load_settings(), journal) == ([], ["sink erp is paused: HTTP 503"])
    journal = FakeJournal(states={"erp": SinkState("erp", pauses=0, pause_reason="HTTP 503")})
    assert readiness_of(load_settings(), journal) == ([], [])


def test_a_sink_that_is_no_longer_enabled_and_has_pending_deliveries_is_a_warning(
    load_settings: LoadSettings, stopped: Clock
) -> None:
    sinks = {
        "erp": SinkCounts(pending=1),
        "off": SinkCounts(pending=2),
        "removed": SinkCounts(pending=3),
        "done": SinkCounts(delivered=4, dead=5),
    }
    assert readiness_of(load_settings(), FakeJournal(sinks=sinks)) == (
        [],
        [
            f"sink {name} is no longer enabled and has {pending} pending deliveries; "
            f"enable it, or run `python -m receiver sinks remove {name}` to delete what is pending"
            for name, pending in (("off", 2), ("removed", 3))
        ],
    )


def test_paused_sinks_and_dead_letters_of_enabled_sinks_are_findings_about_sinks(
    load_settings: LoadSettings, stopped: Clock
) -> None:
    journal = FakeJournal(
        states={"erp": SinkState("erp", pauses=1, pause_reason="HTTP 503")},
        sinks={"erp": SinkCounts(dead=1), "off": SinkCounts(dead=2), "removed": SinkCounts(dead=3)},
    )
    assert check_readiness(load_settings(), cast(Journal, journal)) == Findings(
        [], ["sink erp is paused: HTTP 503", "sink erp has 1 dead letter"], []
    )


def test_a_dispatcher_that_never_ran_is_an_error(load_settings: LoadSettings, stopped: Clock) -> None:
    assert readiness_of(load_settings(), FakeJournal(alive_at=None)) == (["no dispatcher is alive"], [])


@pytest.mark.parametrize(
    ("silent_seconds", "errors", "warnings"),
    [(29, [], ["a warning of the dispatcher"]), (31, ["no dispatcher is alive"], [])],
)
def test_a_dispatcher_is_alive_until_it_is_silent_for_30_s_and_its_warnings_are_shown_as_long(
    silent_seconds: int, errors: list[str], warnings: list[str], load_settings: LoadSettings, stopped: Clock
) -> None:
    journal = FakeJournal(alive_at=stopped.now, dispatcher_warnings=("a warning of the dispatcher",))
    stopped.now += silent_seconds
    assert readiness_of(load_settings(), journal) == (errors, warnings)


def test_an_unavailable_journal_is_an_error_and_its_place_on_a_dyno_still_a_warning(
    load_settings: LoadSettings, stopped: Clock
) -> None:
    journal = FakeJournal(unavailable="disk full", states={"erp": SinkState("erp", pauses=1)})
    assert readiness_of(load_settings(DYNO="web.1"), journal) == (
        ["the journal is unavailable: disk full"],
        [JOURNAL_ON_DYNO],
    )


def test_readiness_is_checked_at_most_once_a_second(load_settings: LoadSettings, stopped: Clock) -> None:
    journal = FakeJournal()
    readiness = Readiness(load_settings(), cast(Journal, journal), Redactor())
    assert [shown(readiness.get()) for _ in range(5)] == [([], [])] * 5
    assert journal.checks == 1
    journal.unavailable = "disk full"
    stopped.now += 1.0
    assert (shown(readiness.get()), journal.checks) == (([], []), 1)
    stopped.now += 0.01
    assert (shown(readiness.get()), journal.checks) == ((["the journal is unavailable: disk full"], []), 2)


def test_readiness_hides_secrets_in_errors_and_warnings(load_settings: LoadSettings, stopped: Clock) -> None:
    redactor = Redactor([DATABASE_URL, "key-of-erp"])
    paused = FakeJournal(states={"erp": SinkState("erp", pauses=1, pause_reason="401 for key-of-erp")})
    assert shown(Readiness(load_settings(), cast(Journal, paused), redactor).get()) == (
        [],
        ["sink erp is paused: 401 for ***"],
    )
    away = FakeJournal(unavailable=f"cannot connect to {DATABASE_URL}")
    assert shown(Readiness(load_settings(), cast(Journal, away), redactor).get()) == (
        ["the journal is unavailable: cannot connect to ***"],
        [],
    )
