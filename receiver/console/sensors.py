"""The list of sensors: what each one last reported, how old that is, and whether it is heard."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from receiver.console import charts, words
from receiver.console.paging import ROWS, page_of
from receiver.console.visit import Download, Page, Visit
from receiver.sensors.history import DAY_SECONDS
from receiver.sensors.shown import LatestValue, SensorRow, history_of, row_of
from receiver.sensors.watch import State

MAX_SEARCH = 200
DOWNLOADED_AT_ONCE = 500
COLUMNS = (
    *("device_id", "name", "type", "project_id", "state", "last_heard", "heartbeat_seconds"),
    *("battery", "signal_strength", "quantity", "value", "unit", "time"),
)


@dataclass(frozen=True)
class Row:
    """A sensor in the list, with its main quantity: the latest value, and a spark line of the last day."""

    sensor: SensorRow
    quantity: str | None
    latest: LatestValue | None
    spark: str


def show(visit: Visit) -> Page:
    registry, text, state = visit.registry, search(visit), chosen_state(visit)
    stored = registry.page(visit.after, ROWS + 1, text=text, state=state)
    page = page_of([row_of(each) for each in stored], lambda row: row.device_id)
    states = visit.sources.states()
    values = {
        "rows": page,
        "listed": with_sparks(visit, page.rows),
        "states": [(f"all {sum(states.values()):,}", "")]
        + [(f"{name} {count:,}", str(name)) for name, count in states.items() if count or name == state],
        "text": text,
        "state": state or "",
    }
    return Page("sensors.html", values)


def search(visit: Visit) -> str:
    return visit.query.get("q", "").strip()[:MAX_SEARCH]


def chosen_state(visit: Visit) -> str | None:
    """A state of the query, if there is one of that name."""
    state = visit.query.get("state", "")
    return state if state in set(State) else None


def with_sparks(visit: Visit, rows: Sequence[SensorRow]) -> list[Row]:
    mains = {row.device_id: main for row in rows if (main := words.main_quantity(row.latest)) is not None}
    start = visit.now - DAY_SECONDS
    points = history_of(visit.registry, list(mains), start, visit.now, mains)
    listed = []
    for row in rows:
        main = mains.get(row.device_id)
        steps = main is not None and words.quantity(main).states is not None
        of_main = points.get(row.device_id, {}).get(main or "", [])
        spark = charts.spark(of_main, start, visit.now, steps=steps)
        listed.append(Row(row, main, row.latest[main] if main else None, spark))
    return listed


def download(visit: Visit) -> Download:
    """All sensors that the list would show on all its pages."""
    return Download("sensors.csv", csv_rows(visit))


def csv_rows(visit: Visit) -> Iterator[Sequence[object]]:
    yield COLUMNS
    after: str | None = None
    while stored := visit.registry.page(after, DOWNLOADED_AT_ONCE, text=search(visit), state=chosen_state(visit)):
        for row in map(row_of, stored):
            main = words.main_quantity(row.latest)
            latest = row.latest[main] if main else None
            of_latest = (main, latest.value, latest.unit, latest.time) if latest else ("", "", "", "")
            yield (
                *(row.device_id, row.name, row.type, row.project_id, row.state, row.last_heard, row.heartbeat_seconds),
                *(row.battery, row.signal_strength, *of_latest),
            )
        after = stored[-1].device_id
