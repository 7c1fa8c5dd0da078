"""The tables of the registry, and how to upgrade those of older receivers.

`registry_sensors` has a row for each sensor ever heard, `registry_days` one for each sensor and day, `registry_tracks`
one for each project and day (and for the receiver itself, as `*`), and `registry_incidents` one for each incident.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Double,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    func,
    inspect,
    literal_column,
    select,
    update,
)

from receiver.errors import JournalError

if TYPE_CHECKING:
    from receiver.journal import Database

SCHEMA_VERSION = 2
UPGRADES: Mapping[int, Sequence[str]] = {
    1: (
        "CREATE INDEX registry_sensors_label ON registry_sensors (lower(coalesce(name, device_id)), device_id)",
        "CREATE INDEX registry_sensors_state ON registry_sensors (state, lower(coalesce(name, device_id)), device_id)",
    ),
}
"""The statements that upgrade each version to the next."""

metadata = MetaData()
versions = Table(
    "registry_schema",
    metadata,
    Column("version", Integer, primary_key=True),
    Column("judge", String(32)),
    Column("judge_until", Double, nullable=False, default=0.0),
)
sensors = Table(
    "registry_sensors",
    metadata,
    Column("device_id", String(64), primary_key=True),
    Column("name", Text),
    Column("project_id", String(64)),
    Column("type", Text),
    Column("facts", Text, nullable=False),
    Column("first_heard", Double),
    Column("last_heard", Double),
    Column("periodic", Boolean, nullable=False),
    Column("connector", String(64)),
    Column("offline_since", Double),
    Column("interval_minutes", Integer),
    Column("learned_at", Double, nullable=False, default=0.0),
    Column("expected_from", Double, nullable=False, default=0.0),
    Column("snoozed_until", Double, nullable=False, default=0.0),
    Column("retired_at", Double),
    Column("state", String(16), nullable=False, default="learning"),
)
LABEL = func.lower(func.coalesce(sensors.c.name, sensors.c.device_id))
"""What sensors are sorted and searched by."""

Index("registry_sensors_name", sensors.c.name)
Index("registry_sensors_label", LABEL, sensors.c.device_id)
Index("registry_sensors_state", sensors.c.state, LABEL, sensors.c.device_id)
days = Table(
    "registry_days",
    metadata,
    Column("device_id", String(64), primary_key=True),
    Column("day", Integer, primary_key=True),
    Column("heard", LargeBinary, nullable=False),
    Column("filled", LargeBinary, nullable=False),
    Column("points", LargeBinary, nullable=False),
    Column("hours", LargeBinary, nullable=False, default=b""),
    Column("folded_at", Double, nullable=False),
)
HAS_POINTS = func.length(days.c.points) > literal_column("0")
"""A literal, since a partial index is not used for a value that is bound later."""
Index("registry_days_day", days.c.day)
Index("registry_days_full", days.c.day, sqlite_where=HAS_POINTS, postgresql_where=HAS_POINTS)
tracks = Table(
    "registry_tracks",
    metadata,
    Column("project_id", String(64), primary_key=True),
    Column("day", Integer, primary_key=True),
    Column("minutes", LargeBinary, nullable=False),
)
incidents = Table(
    "registry_incidents",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("cause", String(16), nullable=False),
    Column("subject", String(64), nullable=False),
    Column("project_id", String(64)),
    Column("sensors", Text, nullable=False),
    Column("since", Double, nullable=False),
    Column("opened", Double, nullable=False),
    Column("closed", Double),
    Column("reason", Text, nullable=False),
    Column("unstable", Boolean, nullable=False),
    Column("announced", Integer, nullable=False),
)
ANNOUNCED_OPENED, ANNOUNCED_CLOSED = 1, 2
"""What of an incident was announced last; 0 if nothing was."""

Index("registry_incidents_closed", incidents.c.closed)


def create_tables(database: Database) -> None:
    """Create or upgrade the tables. Raises JournalError."""
    with database.write() as connection:
        database.lock_schema(connection)
        version = found_version(connection)
        metadata.create_all(connection)
        database.advance_keys(connection, incidents.c.id)
        if version is None:
            connection.execute(database.insert(versions).values(version=SCHEMA_VERSION))
        elif version < SCHEMA_VERSION:
            database.lift_limits(connection)
            connection.execute(update(versions).values(version=SCHEMA_VERSION))  # first, as in a fold
            for older in range(version, SCHEMA_VERSION):
                for statement in UPGRADES[older]:
                    connection.exec_driver_sql(statement)


def found_version(connection: Connection) -> int | None:
    """The version of the tables; None if there are none.

    Raises JournalError if tables or views with our names belong to another program, or to a newer receiver.
    """
    inspector = inspect(connection)
    if not inspector.has_table(versions.name):
        if foreign := sorted(filter(inspector.has_table, metadata.tables)):
            raise JournalError(f"the database has a table '{foreign[0]}' of another program; set another [sensors] url")
        return None
    version: int | None = connection.scalar(select(versions.c.version))
    if version is not None and version > SCHEMA_VERSION:
        raise JournalError(
            f"the registry of sensors has schema {version}, and this receiver supports up to {SCHEMA_VERSION}; "
            "run the newer receiver that wrote it"
        )
    return version
