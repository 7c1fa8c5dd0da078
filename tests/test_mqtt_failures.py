"""What a broker can refuse or lose, and what the `mqtt` sink asks for then: Pause, Retry or GiveUp."""

from __future__ import annotations

import dataclasses
import gc
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path

import pytest
from support.built_in_sinks import Signal, build, class_of, deliver_batch, module_of, open_sink, signal_of
from support.events import event, temperature
from support.fake_mqtt import FakeBroker, fake_broker
from support.mosquitto import Broker, Published, listening, opened, retained, running

from receiver import GiveUp, Pause, Retry
from receiver.errors import PluginError
from receiver.testing import wait_until
from receiver.testing.harness import SINK_NAME, Harness

TLS = Path(__file__).with_name("tls.pem")


def limit(monkeypatch: pytest.MonkeyPatch, **seconds: float) -> None:
    cls = class_of("mqtt")
    monkeypatch.setattr(cls, "limits", dataclasses.replace(cls.limits, **seconds))


@pytest.fixture(autouse=True)
def _short_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, reconnect_seconds=0.05, will_delay_seconds=1)


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, connect_seconds=2.0, response_seconds=2.0)


@pytest.fixture
def broker() -> Iterator[Broker]:
    with running() as broker:
        yield broker


@pytest.fixture
def fake() -> Iterator[FakeBroker]:
    with fake_broker() as broker:
        yield broker


def signal_of_open(**options: object) -> Signal | None:
    sink = build("mqtt", Path.cwd(), options)

    def open_and_close() -> None:
        open_sink(sink)
        sink.hook.close()

    return signal_of(open_and_close)


def refused(broker: FakeBroker) -> Signal | None:
    with opened(broker) as sink:
        return signal_of(lambda: deliver_batch(sink, event("e1")))


# Reason codes


@pytest.mark.parametrize("code", [0x00, 0x10])
def test_a_reason_code_below_0x80_is_delivered(fake: FakeBroker, code: int) -> None:
    fake.code = code
    assert refused(fake) is None


@pytest.mark.parametrize(
    ("code", "type", "text"),
    [
        (0x80, Retry, "the broker has not accepted a message to dt/oslo/d1/event/touch: Unspecified error (0x80)"),
        (0x83, Retry, "…: Implementation specific error (0x83)"),
        (0x87, Pause, "not allowed to publish to dt/oslo/d1/event/touch: Not authorized (0x87); allow it…"),
        (0x90, GiveUp, "the broker does not accept a message to dt/oslo/d1/event/touch: Topic name invalid (0x90)"),
        (0x95, GiveUp, "…: Packet too large (0x95)"),
        (0x97, Retry, "the broker has not accepted a message to dt/oslo/d1/event/touch: Quota exceeded (0x97)"),
        (0x99, GiveUp, "…: Payload format invalid (0x99)"),
        (0xFF, Retry, "the connection was lost: the broker sent data that is not valid MQTT"),
    ],
)
def test_a_refused_message_is_not_delivered(fake: FakeBroker, code: int, type: type, text: str) -> None:
    fake.code = code
    signal = refused(fake)
    assert signal is not None
    begin, end = text.rstrip("…"), text.lstrip("…")
    assert signal.type is type
    assert signal.reason.startswith(begin) or signal.reason.endswith(end)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (0x84, "Unsupported protocol version (0x84)"),
        (0x86, "Bad user name or password (0x86); check user and password"),
        (0x87, "Not authorized (0x87); check user and password"),
        (0x88, "Server unavailable (0x88)"),
        (0x8A, "Banned (0x8a)"),
        (0x97, "Quota exceeded (0x97)"),
    ],
)
def test_a_refused_connection_pauses(fake: FakeBroker, code: int, reason: str) -> None:
    fake.connack = bytes([code, 0])
    assert signal_of_open(url=fake.url) == Signal(Pause, f"the broker refuses the connection: {reason}")


def test_a_broker_that_knows_only_an_older_mqtt_pauses(fake: FakeBroker) -> None:
    fake.connack = b"\x01"
    reason = "the broker refuses the connection: Unsupported protocol version (0x84)"
    assert signal_of_open(url=fake.url) == Signal(Pause, reason)


def test_a_refused_subscription_pauses(fake: FakeBroker) -> None:
    fake.suback = 0x87
    reason = "not allowed to subscribe to dt/status: Not authorized (0x87)"
    assert signal_of_open(url=fake.url) == Signal(Pause, reason)


@pytest.mark.usefixtures("_impatient")
@pytest.mark.parametrize(
    ("reply", "signal"),
    [
        (b"", Signal(Retry, "the broker does not respond within 2 s")),
        (b"\xe0\x02\x95\0", Signal(GiveUp, "the broker ended the connection: Packet too large (0x95)")),
        (b"\xe0\x02\x8b\0", Signal(Retry, "the connection was lost: Server shutting down (0x8b)")),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", None),
        (b"\xff" * 100, None),
        (b"\x90\x00", None),
        (b"\x32\x7f\xff\xff", None),
    ],
)
def test_a_broker_that_sends_something_else_is_no_success(
    fake: FakeBroker, reply: bytes, signal: Signal | None
) -> None:
    fake.reply = reply
    found = refused(fake)
    assert found is not None
    assert found.type is Retry or found == signal
    assert signal is None or found == signal


def test_a_failed_message_is_not_sent_again_by_the_next_connection(fake: FakeBroker) -> None:
    fake.code = 0x97
    with opened(fake) as sink:
        assert signal_of(lambda: deliver_batch(sink, event("e1", device="old"))) is not None
        fake.code = 0
        deliver_batch(sink, event("e2", device="new"))
        assert [b"/old/" in topic for topic in fake.topics[-1]] == [False] * len(fake.topics[-1])
        assert b"dt/oslo/new/event/touch" in fake.topics[-1]


def test_a_packet_over_the_limit_of_the_broker_is_not_sent(fake: FakeBroker) -> None:
    fake.connack = b"\0\5\x27" + (500).to_bytes(4)
    with opened(fake) as sink:
        signal = signal_of(lambda: deliver_batch(sink, event("e1", "x", {"a": "y" * 500})))
    assert signal == Signal(GiveUp, "the broker accepts 500 bytes at most, and dt/oslo/d1/event/x has more")
    assert {topic for topics in fake.topics for topic in topics} == {b"dt/status"}


@pytest.mark.usefixtures("_impatient")
def test_no_more_messages_are_on_their_way_than_the_broker_allows(fake: FakeBroker) -> None:
    fake.connack = b"\0\x03\x21\0\x03"  # a Receive Maximum of 3
    fake.reply = b""
    with opened(fake) as sink:
        failed = signal_of(lambda: deliver_batch(sink, *(event(f"e{number}") for number in range(9))))
    assert failed is not None
    assert failed.type is Retry
    assert sum(b"/event/" in topic for topic in fake.topics[0]) == 3


# A real broker


@pytest.mark.parametrize("limit", ["message_size_limit 500", "max_packet_size 500"])
def test_an_event_that_is_too_large_is_given_up_and_others_are_delivered(broker: Broker, limit: str) -> None:
    broker.configure(f"allow_anonymous true\n{limit}")
    broker.restart()
    with opened(broker) as sink:
        signal = signal_of(lambda: deliver_batch(sink, event("e1", "x", {"a": "y" * 1000})))
        deliver_batch(sink, event("e2"))
    assert signal is not None
    assert signal.type is GiveUp


def test_a_queue_that_holds_nothing_loses_nothing(broker: Broker) -> None:
    """Neither what is published, nor what is looked up: 40 devices have 80 retained messages."""
    broker.configure("allow_anonymous true\nmax_inflight_messages 1\nmax_queued_messages 1")
    broker.restart()
    devices = [f"d{number}" for number in range(40)]
    for minute in (30, 10):
        with opened(broker) as sink:
            deliver_batch(sink, *(temperature(f"e{minute}", 1.0, minute=minute, device=each) for each in devices))
    broker.configure("allow_anonymous true")
    values = retained(broker, "dt/oslo/+/temperature")
    assert ["e30" in payload.decode() for payload in values.values()] == [True] * 40


def test_an_acl_that_forbids_one_topic_pauses_with_that_reason_and_nothing_counts_as_delivered(
    broker: Broker, tmp_path: Path
) -> None:
    (broker.folder / "acl").write_text("topic readwrite #\ntopic deny dt/oslo/d2/event/touch\n")
    broker.configure("allow_anonymous true\nacl_file {folder}/acl")
    broker.restart()
    reason = "not allowed to publish to dt/oslo/d2/event/touch: Not authorized (0x87); allow it in the broker's ACL"
    with opened(broker) as sink:
        signal = signal_of(lambda: deliver_batch(sink, event("e1"), event("e2", device="d2"), event("e3")))
        deliver_batch(sink, event("e1"), event("e3"))
    assert signal == Signal(Pause, reason)
    with closing(Harness(tmp_path, "plugins/mqtt/__init__.py", None, {"url": broker.url})) as harness:
        harness.push([event("e1"), event("e2", device="d2"), event("e3")])
        counts = harness.deliver(harness.build(retry={"initial_backoff": 600, "max_backoff": 600}))
        assert (counts.delivered, counts.pending, counts.dead) == (0, 3, 0)
        assert harness.journal.sink_states()[SINK_NAME].pause_reason == reason


@pytest.mark.usefixtures("_impatient")
@pytest.mark.parametrize(
    ("acl", "reason"),
    [
        ("topic read #", "not allowed to publish to dt/status: Not authorized (0x87); allow it in the broker's ACL"),
        (
            "topic write #",
            "the broker does not send retained messages (the broker does not respond within 2 s); "
            "allow reading them in its ACL",
        ),
    ],
)
def test_an_acl_that_forbids_to_write_or_to_read_pauses(broker: Broker, acl: str, reason: str) -> None:
    (broker.folder / "acl").write_text(acl)
    broker.configure("allow_anonymous true\nacl_file {folder}/acl")
    broker.restart()
    assert signal_of_open(url=broker.url) == Signal(Pause, reason)


def test_user_and_password_are_those_of_the_url_or_of_the_options() -> None:
    with running("password_file {folder}/passwords", users={"dt@home": "a/b:c"}) as broker:
        in_url = broker.url.replace("//", "//dt%40home:a%2Fb%3Ac@")
        assert signal_of_open(url=in_url) is None
        assert signal_of_open(url=broker.url, user="dt@home", password="a/b:c") is None
        reason = "the broker refuses the connection: Not authorized (0x87); check user and password"
        assert signal_of_open(url=broker.url, user="dt@home", password="wrong") == Signal(Pause, reason)
        assert signal_of_open(url=broker.url) == Signal(Pause, reason)


def test_tls_needs_a_certificate_that_is_trusted(tmp_path: Path) -> None:
    with running("allow_anonymous true") as broker:
        for name in ("certfile", "keyfile"):
            (broker.folder / name).write_bytes(TLS.read_bytes())
        broker.configure("allow_anonymous true\ncertfile {folder}/certfile\nkeyfile {folder}/keyfile")
        broker.restart()
        url = f"mqtts://localhost:{broker.port}"
        with opened(broker, url=url, ca_file=str(TLS)) as sink:
            deliver_batch(sink, *(event(f"e{number}", "x", {"y": "z" * 10_000}) for number in range(100)))
            deliver_batch(sink, temperature("e1", 21.5))
        assert broker.log.count("/event/x") == 100
        untrusted = signal_of_open(url=url)
        assert untrusted is not None
        assert untrusted.type is Pause
        assert untrusted.reason.startswith("no connection to localhost: its certificate is not trusted: self")
        missing = signal_of_open(url=url, ca_file="missing.pem")
        assert missing == Signal(Pause, f"ca_file {Path.cwd()}/missing.pem cannot be read: No such file or directory")
        plain = signal_of_open(url=broker.url)
        assert plain is not None
        assert plain.type is Pause


def test_a_broker_that_is_away_pauses_and_the_next_call_connects_again(broker: Broker) -> None:
    with opened(broker) as sink:
        broker.kill()
        signal = signal_of(lambda: deliver_batch(sink, event("e1")))
        broker.start()
        deliver_batch(sink, event("e1"))
    assert signal is not None
    assert signal.type in (Pause, Retry)
    assert signal_of_open(url="mqtt://127.0.0.1:1") == Signal(Pause, "no connection to 127.0.0.1: Connection refused")


def test_what_a_broker_without_persistence_has_forgotten_is_published_again(broker: Broker) -> None:
    with opened(broker) as sink:
        deliver_batch(sink, event("e1", "contact", {"state": "OPEN"}))
        broker.restart()
        wait_until(lambda: retained(broker) == {"dt/status": b"online"}, what="the sink to reconnect by itself")
        deliver_batch(sink, event("e1", "contact", {"state": "OPEN"}), attempt=2)
        assert sorted(retained(broker)) == ["dt/oslo/d1/availability", "dt/oslo/d1/open", "dt/status"]


def test_what_a_broker_with_persistence_has_saved_is_not_replaced_by_an_older_value(broker: Broker) -> None:
    broker.configure("allow_anonymous true\npersistence true\npersistence_location {folder}/")
    broker.restart()
    topic = "dt/oslo/d1/temperature"
    with opened(broker) as sink:
        deliver_batch(sink, temperature("e2", 22.0, minute=30))
        broker.stop()
        broker.start()
        older = temperature("e1", 11.0, minute=10)
        wait_until(lambda: signal_of(lambda: deliver_batch(sink, older)) is None, what="the delivery")
        assert b'"e2"' in retained(broker, topic)[topic]
        deliver_batch(sink, temperature("e3", 33.0, minute=40))
        assert b'"e3"' in retained(broker, topic)[topic]


@pytest.mark.usefixtures("_impatient")
def test_a_frozen_broker_is_not_waited_for_and_gets_the_events_afterwards(broker: Broker) -> None:
    with opened(broker) as sink:
        deliver_batch(sink, event("e1"))
        with broker.frozen():
            signals = [signal_of(lambda: deliver_batch(sink, event("e2"))) for _ in range(2)]
        deliver_batch(sink, event("e2"))
    assert signals == [
        Signal(Retry, "the broker does not respond within 2 s"),
        Signal(Pause, "no connection to 127.0.0.1: the broker does not respond within 2 s"),
    ]


# Online and offline


def payloads(messages: Sequence[Published]) -> list[bytes]:
    return [each.payload for each in messages]


def test_the_status_is_offline_some_time_after_the_sink_was_closed(broker: Broker) -> None:
    with listening(broker, "dt/status") as listener:
        with opened(broker):
            began_to_close_at = time.monotonic()
        listener.wait_for(lambda messages: payloads(messages) == [b"online", b"offline"], "offline")
        assert time.monotonic() - began_to_close_at > 0.5


def test_a_sink_that_is_opened_again_in_time_was_never_offline(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, will_delay_seconds=60)
    with listening(broker, "dt/status") as listener:
        for _ in range(3):
            with opened(broker) as sink:
                deliver_batch(sink, event("e1"))
        assert {each.payload for each in listener.catch_up()} == {b"online"}


@pytest.mark.parametrize("retain", [True, False])
def test_two_sinks_of_the_same_name_do_not_kick_each_other_out_and_stay_online(broker: Broker, retain: bool) -> None:
    with listening(broker, "dt/status") as listener, opened(broker, retain=retain) as first:
        with opened(broker, retain=retain) as second:
            for number in range(20):
                deliver_batch(first if number % 2 else second, event(f"e{number}"))
        listener.wait_for(lambda messages: b"offline" in payloads(messages), "the will of the second")
        listener.wait_for(lambda messages: payloads(messages)[-1] == b"online", "the correction by the first")
    assert "already connected" not in broker.log
    assert "session taken over" not in broker.log.lower()


def test_an_idle_connection_stays(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module_of("mqtt").Session.__init__.__globals__, "KEEPALIVE_SECONDS", 1)
    with opened(broker):
        wait_until(lambda: broker.log.count("Received PINGREQ") > 2, what="signs of life")
    assert "exceeded timeout" not in broker.log


def test_the_sink_connects_although_the_current_folder_was_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = build("mqtt", tmp_path, {"url": "mqtt://127.0.0.1:1"})
    (current := tmp_path / "current").mkdir()
    monkeypatch.chdir(current)
    current.rmdir()
    assert signal_of(lambda: open_sink(sink)) == Signal(Pause, "no connection to 127.0.0.1: Connection refused")


def test_a_client_id_is_free_again_after_a_connection_that_failed(tmp_path: Path) -> None:
    gc.collect()  # or files of earlier tests may be closed below
    files = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        sink = build("mqtt", tmp_path, {"url": "mqtt://127.0.0.1:1"})
        assert signal_of(lambda sink=sink: open_sink(sink)).type is Pause
    assert len(list(Path("/proc/self/fd").iterdir())) == files


def test_no_thread_is_left_of_connections_that_failed(broker: Broker) -> None:
    before = threading.active_count()
    with opened(broker) as sink:
        for _ in range(5):
            broker.restart()
            signal_of(lambda: deliver_batch(sink, event("e1")))
    wait_until(lambda: threading.active_count() <= before, what="threads to end")


# Options


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"url": "http://a"}, "url must be a URL such as mqtt://host or mqtts://user:password@host:8883"),
        ({"url": "mqtt://"}, "url must be a URL such as"),
        ({"url": "mqtt://a:70000"}, "url must be a URL such as"),
        ({"url": "mqtt://a/topic"}, "url must be a URL such as"),
        ({"url": "mqtt://[::1"}, "url must be a URL such as"),
        ({"url": "mqtt://a..b"}, "url must be a URL such as"),
        ({"url": "mqtt://u:p@a", "user": "u"}, "url has a user name or password, and so has user or password"),
        ({"url": "mqtt://a", "ca_file": "a.pem"}, "ca_file has no effect with a url that begins with mqtt://"),
        ({"url": "mqtt://a", "prefix": ""}, "prefix must be the beginning of a topic"),
        ({"url": "mqtt://a", "prefix": "a/+/b"}, "prefix must be the beginning of a topic"),
        ({"url": "mqtt://a", "prefix": "$SYS"}, "prefix must be the beginning of a topic"),
        ({"url": "mqtt://a", "prefix": "a/"}, "prefix must be the beginning of a topic"),
        ({"url": "mqtt://a", "discovery_prefix": "a#"}, "discovery_prefix must be the beginning of a topic"),
        ({"url": "mqtt://a", "prefix": "homeassistant"}, "prefix must not be that of Home Assistant"),
    ],
)
def test_an_invalid_option_is_named(options: Mapping[str, object], problem: str) -> None:
    with pytest.raises(PluginError) as caught:
        build("mqtt", Path.cwd(), options)
    assert problem in str(caught.value)


def test_invalid_options_are_all_named_at_once() -> None:
    with pytest.raises(PluginError) as caught:
        build("mqtt", Path.cwd(), {"url": "localhost", "prefix": "dt/", "discovery_prefix": "/ha"})
    named = [line.removeprefix("config.toml [sinks.tested]: ").split()[0] for line in str(caught.value).splitlines()]
    assert named == ["url", "prefix", "discovery_prefix"]
