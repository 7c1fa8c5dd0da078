"""Connections of the webhook sink: kept for the next event, replaced when they are closed, one for each thread."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor

from support.built_in_sinks import Signal, open_sink
from support.endpoints import Connection, OpenWebhook, StartEndpoint, outcome, respond, webhook_event

from receiver import Retry
from receiver.testing.running import wait_until


def respond_and_close(connection: Connection) -> None:
    respond("200 OK")(connection)


def test_a_connection_is_kept_for_the_next_event(start_endpoint: StartEndpoint, open_webhook: OpenWebhook) -> None:
    endpoint = start_endpoint(respond("200 OK", body=b"thanks"), respond("500 Oops", body=b"x" * 1000))
    sink = open_webhook(endpoint.url)
    assert [outcome(sink) for _ in range(3)] == [None, Signal(Retry, "HTTP 500"), None]
    assert [request.connection for request in endpoint.requests] == [1, 1, 1]


def test_a_connection_that_was_closed_between_two_events_costs_no_attempt(
    start_endpoint: StartEndpoint, open_webhook: OpenWebhook
) -> None:
    endpoint = start_endpoint(respond_and_close, respond_and_close)
    sink = open_webhook(endpoint.url)
    assert outcome(sink, webhook_event("e1")) is None
    wait_until(lambda: endpoint.closed == 1, what="the first close")
    assert outcome(sink, webhook_event("e2")) is None
    wait_until(lambda: endpoint.closed == 2, what="the second close")
    assert outcome(sink, webhook_event("e3")) is None
    assert [json.loads(request.body)["event"]["eventId"] for request in endpoint.requests] == ["e1", "e2", "e3"]


def test_eight_threads_can_deliver_at_once_on_a_connection_each(
    start_endpoint: StartEndpoint, open_webhook: OpenWebhook
) -> None:
    all_are_waiting = threading.Barrier(8)

    def respond_together(connection: Connection) -> bool:
        all_are_waiting.wait(20)
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        return True

    endpoint = start_endpoint(*[respond_together] * 40)
    sink = open_webhook(endpoint.url)

    def deliver(thread: int) -> list[Signal | None]:
        return [outcome(sink, webhook_event(f"t{thread}n{number}", label=str(thread) * 500)) for number in range(5)]

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(deliver, range(8))) == [[None] * 5] * 8
    assert sorted(request["idempotency-key"] for request in endpoint.requests) == sorted(
        f"t{thread}n{number}" for thread in range(8) for number in range(5)
    )
    assert all(json.loads(request.body)["event"]["eventId"] == request["webhook-id"] for request in endpoint.requests)
    assert endpoint.connections == 8


def test_a_sink_can_be_opened_again_after_close(start_endpoint: StartEndpoint, open_webhook: OpenWebhook) -> None:
    endpoint = start_endpoint()
    sink = open_webhook(endpoint.url)
    assert outcome(sink) is None
    sink.hook.close()
    open_sink(sink)
    assert outcome(sink) is None
    assert [request.connection for request in endpoint.requests] == [1, 2]


def test_a_sink_that_was_opened_several_times_has_one_thread_for_its_deadlines(open_webhook: OpenWebhook) -> None:
    sink = open_webhook("http://127.0.0.1:9/")
    for _ in range(5):
        sink.hook.close()
        open_sink(sink)
    wait_until(lambda: [thread.name for thread in threading.enumerate()].count("webhook deadlines") == 1)
