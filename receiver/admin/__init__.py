"""What operators inspect and change, subject by subject; each function is behind a command or a page of the console.

All of them use the journal's records, whether the receiver runs or not.
"""

from __future__ import annotations

from receiver.admin.backfills import ask_for_backfill, backfill_possible, to_backfill
from receiver.admin.check import (
    require_creatable,
    secrets_used,
    signing_keys,
    undocumented,
    unknown_event_types,
    unmatchable_filters,
)
from receiver.admin.dead_letters import (
    count_dead_letters,
    dead_letter_reasons,
    dead_letter_row,
    delete_dead_letters,
    list_dead_letters,
    retry_dead_letters,
    some_dead_letter_reasons,
)
from receiver.admin.events import EventRow, event_row, explain, find_events, newest_events
from receiver.admin.quarantine import one_quarantined, quarantine_row, quarantined, retry_quarantined
from receiver.admin.replays import replay, replay_event, replayable
from receiver.admin.shown import MAX_LISTED, ago, decoded, time_or_none, to_time
from receiver.admin.sinks import (
    SinkStatus,
    count_undelivered,
    enabled_sink,
    life_signs,
    reasons,
    remove_sink,
    resume,
    sink_statuses,
    status,
)

__all__ = [
    "MAX_LISTED",
    "EventRow",
    "SinkStatus",
    "ago",
    "ask_for_backfill",
    "backfill_possible",
    "count_dead_letters",
    "count_undelivered",
    "dead_letter_reasons",
    "dead_letter_row",
    "decoded",
    "delete_dead_letters",
    "enabled_sink",
    "event_row",
    "explain",
    "find_events",
    "life_signs",
    "list_dead_letters",
    "newest_events",
    "one_quarantined",
    "quarantine_row",
    "quarantined",
    "reasons",
    "remove_sink",
    "replay",
    "replay_event",
    "replayable",
    "require_creatable",
    "resume",
    "retry_dead_letters",
    "retry_quarantined",
    "secrets_used",
    "signing_keys",
    "sink_statuses",
    "some_dead_letter_reasons",
    "status",
    "time_or_none",
    "to_backfill",
    "to_time",
    "undocumented",
    "unknown_event_types",
    "unmatchable_filters",
]
