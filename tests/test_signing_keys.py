"""DT's own keys: fetched by one process at a time, stored for all, and used while DT's identity service is away."""

from __future__ import annotations

import json
import logging
import socket
import sqlite3
import ssl
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from ipaddress import ip_address
from pathlib import Path

import pytest
from conftest import RunningReceiver, StartReceiver, new_database, wait_until
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from support.asymmetric import environment, signed, wait_for_keys
from support.journals import Clock, Store
from support.pushes import event

from receiver import keys as keys_module
from receiver.errors import JournalUnavailable
from receiver.keys import FAILURE, KEYS, FetchError, SigningKeys, StoredKeys, fetch_keys
from receiver.settings import Settings, load
from receiver.signature import PublicKey, read_keys
from receiver.testing.issuer import DISCOVERY, JWKS, PATH, Issuer, jwk, send

ISSUER = "https://identity.example/data-connector"
HOUR = 3600.0
DAY = 86400.0
SETS = Issuer()
for _ in range(4):
    SETS.rotate()
"""Five keys; making one takes a while."""


def key_set(*key_ids: str) -> dict[str, PublicKey]:
    return read_keys({"keys": [jwk(key_id, SETS.keys[key_id]) for key_id in key_ids]})


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "config.toml").touch()
    path = str(tmp_path / "config.toml")
    return load({"RECEIVER_CONFIG": path, "DT_ORGANIZATION_ID": "one", "DT_ISSUER_URL": ISSUER})


@dataclass
class Service:
    """DT's identity service, as `fetch` sees it: a set of keys, or the reason why there is none."""

    current: dict[str, PublicKey] | str = field(default_factory=dict)
    fetched: int = 0

    def fetch(self, issuer: str) -> Mapping[str, PublicKey]:
        assert issuer == ISSUER
        self.fetched += 1
        if isinstance(self.current, str):
            raise FetchError(self.current)
        return self.current


@pytest.fixture
def service() -> Service:
    return Service(key_set("key-1", "key-2"))


Open = Callable[[], SigningKeys]


@pytest.fixture
def open_keys(settings: Settings, store: Store, clock: Clock, service: Service) -> Open:
    """A function that returns the keys as another process knows them, without its thread."""
    return lambda: SigningKeys(settings, store.open(), service.fetch, lambda: clock.now)


def found(keys: SigningKeys, *key_ids: str) -> list[bool]:
    return [keys.find(key_id) is not None for key_id in key_ids]


def test_one_process_fetches_the_keys_and_all_others_read_them(open_keys: Open, service: Service) -> None:
    first, second = open_keys(), open_keys()
    assert found(first, "key-1") == [False]
    first.refresh()
    second.refresh()
    assert found(first, "key-1", "key-2", "key-3") == found(second, "key-1", "key-2", "key-3") == [True, True, False]
    assert service.fetched == 1


def test_keys_are_fetched_every_hour_and_a_successful_fetch_replaces_the_set(
    open_keys: Open, service: Service, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    keys, other = open_keys(), open_keys()
    keys.refresh()
    clock.advance(HOUR - 1)
    keys.refresh()
    assert service.fetched == 1
    service.current = key_set("key-2", "key-3")
    clock.advance(1)
    other.refresh()
    keys.refresh()
    assert (service.fetched, found(keys, "key-1", "key-2", "key-3")) == (2, [False, True, True])
    assert caplog.messages == [
        "DT's signing keys have changed: now key-1, key-2, before none",
        "DT's signing keys have changed: now key-2, key-3, before key-1, key-2",
    ]


def test_unknown_keys_cause_one_fetch_in_30_s_however_many_pushes_name_them(
    open_keys: Open, service: Service, clock: Clock
) -> None:
    processes = [open_keys() for _ in range(3)]
    for keys in processes:
        keys.refresh()
    for _ in range(30):  # one each second
        clock.advance(1)
        for keys in processes:
            assert found(keys, "unknown", "unknown too") == [False, False]
            keys.refresh()
    assert service.fetched == 2
    service.current = key_set("key-3")
    for keys in processes:
        assert found(keys, "key-3") == [False]
        keys.refresh()
    assert (service.fetched, found(processes[0], "key-3")) == (2, [False])
    clock.advance(30)
    for keys in processes:
        keys.refresh()
    assert (service.fetched, [found(keys, "key-3") for keys in processes]) == (3, [[True]] * 3)


def test_an_unknown_key_that_another_process_has_fetched_causes_no_fetch(
    open_keys: Open, service: Service, clock: Clock
) -> None:
    keys, other = open_keys(), open_keys()
    keys.refresh()
    other.refresh()
    service.current = key_set("key-2", "key-3")
    clock.advance(60)
    assert found(keys, "key-3") == found(other, "key-3") == [False]
    keys.refresh()
    clock.advance(60)
    other.refresh()
    assert (service.fetched, found(other, "key-3")) == (2, [True])
    clock.advance(60)
    other.refresh()
    assert service.fetched == 2


def test_an_unknown_key_is_fetched_after_the_cool_down_although_no_other_push_names_it(
    open_keys: Open, service: Service, clock: Clock
) -> None:
    keys = open_keys()
    keys.refresh()
    service.current = key_set("key-3")
    assert found(keys, "key-3") == [False]
    for seconds in (1, 30):
        clock.advance(seconds)
        keys.refresh()
    assert (service.fetched, found(keys, "key-3")) == (2, [True])


def test_looking_again_reads_the_journal_once_in_half_a_second(
    open_keys: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys, read = open_keys(), list[str]()
    monkeypatch.setattr(keys._journal, "document", lambda name: read.append(name))
    monkeypatch.setattr(keys_module, "WAKE_SECONDS", 1000.0)
    for _ in range(3):
        keys.look_again()
    assert read == [KEYS, FAILURE]


def test_a_failure_before_the_last_successful_fetch_is_past(
    open_keys: Open, service: Service, settings: Settings, clock: Clock
) -> None:
    keys = open_keys()
    service.current, keys_before = "HTTP 500", service.current
    keys.refresh()
    failed = StoredKeys.read(keys._journal, settings.issuer)
    assert (failed.failed_at, failed.reason) == (clock.now, "HTTP 500")
    service.current = keys_before
    clock.advance(60)
    keys.refresh()
    fetched = StoredKeys.read(keys._journal, settings.issuer)
    assert (fetched.fetched_at, fetched.failed_at, fetched.reason) == (clock.now, None, "")


def test_when_fetching_fails_the_keys_are_used_until_they_are_seven_days_old(
    open_keys: Open, service: Service, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    keys = open_keys()
    keys.refresh()
    service.current = "HTTP 500"
    clock.advance(7 * DAY)
    keys.refresh()
    assert (service.fetched, found(keys, "key-1")) == (2, [True])
    clock.advance(100)
    assert found(keys, "key-1") == found(open_keys(), "key-1") == [False]
    keys.refresh()
    assert (service.fetched, found(keys, "key-1")) == (3, [False])
    service.current = key_set("key-1", "key-2")
    clock.advance(30)
    keys.refresh()
    assert found(keys, "key-1") == [True]
    assert caplog.messages == [
        "DT's signing keys have changed: now key-1, key-2, before none",
        "DT's signing keys cannot be fetched: HTTP 500",
        "DT's signing keys can be fetched again; they have not changed",
    ]


def test_after_a_failure_the_next_attempt_is_five_minutes_later_or_30_s_without_usable_keys(
    open_keys: Open, service: Service, clock: Clock
) -> None:
    keys = open_keys()

    def attempts(seconds: int) -> int:
        before = service.fetched
        for _ in range(seconds // 10):
            clock.advance(10)
            keys.refresh()
        return service.fetched - before

    keys.refresh()
    service.current = "HTTP 500"
    clock.advance(HOUR - 10)
    assert attempts(600) == 2
    clock.advance(7 * DAY)
    assert attempts(300) == 10


def test_a_fetch_that_fails_late_does_not_replace_the_keys_of_another_process(
    open_keys: Open, service: Service, clock: Clock, store: Store, settings: Settings
) -> None:
    other = open_keys()

    def fail_late(issuer: str) -> Mapping[str, PublicKey]:
        clock.advance(40)
        other.refresh()
        raise FetchError("its host name cannot be resolved")

    late = SigningKeys(settings, store.open(), fail_late, lambda: clock.now)
    late.refresh()
    late.refresh()
    assert (service.fetched, found(late, "key-1"), found(other, "key-1")) == (1, [True], [True])


def test_a_clock_that_was_set_back_delays_no_fetch(open_keys: Open, service: Service, clock: Clock) -> None:
    keys = open_keys()
    keys.refresh()
    service.current = key_set("key-3")
    clock.advance(-30 * DAY)
    keys.refresh()
    assert (service.fetched, found(keys, "key-3")) == (2, [True])


def test_the_keys_of_one_issuer_verify_nothing_of_another(
    open_keys: Open, store: Store, settings: Settings, tmp_path: Path
) -> None:
    open_keys().refresh()
    assert set(StoredKeys.read(store.open(), ISSUER).keys) == {"key-1", "key-2"}
    assert StoredKeys.read(store.open(), ISSUER + "/other") == StoredKeys()


@pytest.mark.parametrize(
    "document",
    [b"", b"\xff", b"null", b"[]", b"{}", b"[" * 5000, b'{"issuer": 5, "fetched_at": []}', b"NaN"],
    ids=lambda document: repr(document[:12]),
)
def test_a_stored_document_of_another_shape_is_fetched_again(
    document: bytes, open_keys: Open, store: Store, service: Service
) -> None:
    journal = store.open()
    journal.save_document(KEYS, document)
    journal.save_document("dt-signing-keys-failure", document)
    keys = open_keys()
    keys.refresh()
    assert (service.fetched, found(keys, "key-1")) == (1, [True])


def test_while_the_journal_is_unavailable_the_keys_stay_known(
    open_keys: Open, service: Service, store: Store, clock: Clock
) -> None:
    keys = open_keys()
    keys.refresh()
    store.disk_full = True
    clock.advance(2 * HOUR)
    with pytest.raises(JournalUnavailable):
        keys.refresh()
    assert found(keys, "key-1") == [True]
    store.disk_full = False
    keys.refresh()
    assert service.fetched == 2


# Fetching


def respond_with(content: object, status: int = 200, *, path: str = PATH + DISCOVERY) -> Callable[[Issuer], None]:
    """Let an issuer respond at `path` with this; elsewhere as usual."""

    def change(issuer: Issuer) -> None:
        def answer(request: BaseHTTPRequestHandler) -> None:
            if request.path == path:
                send(request, content, status)
            else:
                issuer.respond(request)

        issuer.answer = answer

    return change


def hang(issuer: Issuer) -> None:
    issuer.answer = lambda request: time.sleep(3)


def drip_head(issuer: Issuer) -> None:
    issuer.answer = lambda request: drip(request, b"HTTP/1.1 200 OK\r\nX: " + b"a" * 1000)


def drip_body(issuer: Issuer) -> None:
    issuer.answer = lambda request: drip(request, b"HTTP/1.1 200 OK\r\n\r\n" + b" " * 1000, after=19)


def drip(request: BaseHTTPRequestHandler, data: bytes, after: int = 0) -> None:
    request.connection.sendall(data[:after])
    try:
        for byte in data[after:]:
            request.connection.sendall(bytes([byte]))
            time.sleep(0.05)
    except OSError:
        request.close_connection = True


def endless(issuer: Issuer) -> None:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        try:
            for _ in range(160):
                request.connection.sendall(b" " * 65536)
        except OSError:
            request.close_connection = True

    issuer.answer = answer


def redirect(issuer: Issuer) -> None:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(302)
        request.send_header("Location", issuer.origin + JWKS)
        request.end_headers()

    issuer.answer = answer


def keys_at(address: str) -> Callable[[Issuer], None]:
    return lambda issuer: setattr(issuer, "jwks_uri", address)


NOT_JSON = "its response is not JSON"
NO_KEY = "its key set has no key for ES256"
NO_URI = "its configuration has no valid jwks_uri"
OTHER_HOST = "its jwks_uri is on another host"
IN_TIME = "no complete response within 1 s"

FAILURES: dict[str, tuple[Callable[[Issuer], None], str]] = {
    "500": (respond_with({}, 500), "HTTP 500"),
    "404": (respond_with({}, 404), "HTTP 404"),
    "204": (respond_with(b"", 204), "HTTP 204"),
    "500 for keys": (respond_with({}, 500, path=JWKS), "HTTP 500"),
    "hangs": (hang, IN_TIME),
    "head in drips": (drip_head, IN_TIME),
    "body in drips": (drip_body, IN_TIME),
    "10 MB, endless": (endless, "its response has more than 65536 bytes"),
    "10 MB": (respond_with(b" " * 10_000_000), "its response has more than 65536 bytes"),
    "64 KiB and one byte of keys": (
        respond_with(b'{"keys": []}' + b" " * 65525, path=JWKS),
        "its response has more than 65536 bytes",
    ),
    "redirect": (redirect, "HTTP 302"),
    "not JSON": (respond_with(b"<html>"), NOT_JSON),
    "not UTF-8": (respond_with(b'"\xff"'), NOT_JSON),
    "nested brackets": (respond_with(b"[" * 60_000), NOT_JSON),
    "empty": (respond_with(b""), NOT_JSON),
    "keys are not JSON": (respond_with(b"<html>", path=JWKS), NOT_JSON),
    "a list": (respond_with([]), NO_URI),
    "no jwks_uri": (respond_with({"issuer": "x"}), NO_URI),
    "jwks_uri is a number": (respond_with({"jwks_uri": 5}), NO_URI),
    "jwks_uri is a file": (keys_at("file:///etc/passwd"), NO_URI),
    "jwks_uri is relative": (keys_at("/keys"), NO_URI),
    "jwks_uri without TLS": (keys_at("http://identity.example/keys"), NO_URI),
    "jwks_uri with a user": (keys_at("http://user@127.0.0.1/keys"), NO_URI),
    "jwks_uri with an invalid port": (keys_at("http://127.0.0.1:99999/keys"), NO_URI),
    "jwks_uri on another host": (keys_at("https://identity.example/keys"), OTHER_HOST),
    "jwks_uri on another port": (keys_at("http://127.0.0.1:1/keys"), OTHER_HOST),
    "jwks_uri under another name": (keys_at("http://localhost/keys"), OTHER_HOST),
    "keys are a list": (respond_with([], path=JWKS), NO_KEY),
    "empty set": (respond_with({"keys": []}, path=JWKS), NO_KEY),
    "only a key of another curve": (
        respond_with({"keys": [{"kid": "a", "kty": "EC", "crv": "P-384", "x": "AA", "y": "AA"}]}, path=JWKS),
        NO_KEY,
    ),
}


@pytest.mark.parametrize("name", FAILURES)
def test_an_issuer_that_does_not_publish_keys_properly_fails_with_the_reason(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys_module, "RESPONSE_SECONDS", 1.0 if FAILURES[name][1] == IN_TIME else 60.0)
    change, reason = FAILURES[name]
    with Issuer() as issuer:
        change(issuer)
        with pytest.raises(FetchError) as failed:
            fetch_keys(issuer.url)
    assert str(failed.value) == reason


def test_the_keys_of_an_issuer_are_fetched_with_two_requests() -> None:
    with Issuer() as issuer:
        issuer.rotate()
        assert fetch_keys(issuer.url) == read_keys(issuer.key_set())
        assert issuer.requests == [PATH + DISCOVERY, JWKS]
        assert fetch_keys(issuer.url + "/") == read_keys(issuer.key_set())


def test_an_issuer_that_refuses_connections_or_whose_name_is_unknown_fails_with_the_reason() -> None:
    with Issuer() as issuer:
        issuer.close()
        with pytest.raises(FetchError, match=r"\AConnection refused\Z"):
            fetch_keys(issuer.url)
    with pytest.raises(FetchError, match=r"\Aits host name cannot be resolved\Z"):
        fetch_keys("https://identity.invalid/data-connector")


def test_an_issuer_that_ends_the_connection_fails_with_the_reason() -> None:
    with Issuer() as issuer:
        issuer.answer = lambda request: request.connection.shutdown(socket.SHUT_RDWR)
        with pytest.raises(FetchError, match=r"\A[A-Z]\w+\Z"):
            fetch_keys(issuer.url)


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A key and a certificate for 127.0.0.1 that no authority has signed."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(datetime.now(UTC) - timedelta(days=1))
        .not_valid_after(datetime.now(UTC) + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, SHA256())
    )
    path = tmp_path / "certificate.pem"
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(private + made.public_bytes(Encoding.PEM))
    return path


def test_a_certificate_must_be_of_a_known_authority_and_for_this_host(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Issuer(certificate) as issuer:
        with pytest.raises(FetchError, match=r"\Aits certificate is not trusted: self-signed certificate\Z"):
            fetch_keys(issuer.url)
        context = ssl.create_default_context
        monkeypatch.setattr(ssl, "create_default_context", lambda: context(cafile=certificate))
        assert fetch_keys(issuer.url) == read_keys(issuer.key_set())
        with pytest.raises(FetchError, match="its certificate is not trusted: "):
            fetch_keys(issuer.url.replace("127.0.0.1", "localhost"))


# A running receiver


def test_a_first_start_without_keys_gets_503_and_ready_says_why(issuer: Issuer, start_receiver: StartReceiver) -> None:
    own = Issuer()
    with own:
        respond_with({}, 500)(own)
        receiver = start_receiver(ready=False, **environment(own))
        body = event("first start")
        assert receiver.push(body, signed(own, body)) == (503, "signing key unknown")
        error = "DT's signing keys have not been fetched yet: HTTP 500"
        wait_until(lambda: readiness(receiver)[1]["errors"] == [error], what=error)
        assert readiness(receiver)[0] == 503
        assert receiver.is_ok("/healthz")
        assert f"warning: {error}" in receiver.run("check")
        assert receiver.log.count("cannot be fetched") == 1


def test_with_a_secret_missing_keys_are_only_a_warning(start_receiver: StartReceiver) -> None:
    with Issuer() as own:
        respond_with({}, 404)(own)
        receiver = start_receiver(**environment(own, "test-secret"))
        warning = "DT's signing keys have not been fetched yet: HTTP 404"
        wait_until(lambda: readiness(receiver)[1]["warnings"] == [warning], what=warning)
        assert readiness(receiver)[0] == 200


def readiness(receiver: RunningReceiver) -> tuple[int, dict[str, list[str]]]:
    response = receiver.http.request("GET", f"{receiver.url}/readyz")
    return response.status, json.loads(response.data)


def test_after_a_restart_pushes_are_verified_from_the_stored_keys_while_the_issuer_is_away(
    start_receiver: StartReceiver,
) -> None:
    with Issuer() as own:
        receiver = start_receiver(clock=time.time(), **environment(own))
        receiver.stop()
        own.close()
        receiver.start(ready=False)
        for number in range(10):
            body = event(f"after a restart {number}")
            assert receiver.push(body, signed(own, body)) == (200, "accepted")
        receiver.stop()

        receiver.shift_clock(2 * DAY)
        receiver.start()
        later = int(time.time() + 2 * DAY)
        body = event("two days later")
        assert receiver.push(body, signed(own, body, iat=later, exp=later + 300)) == (200, "accepted")
        warning = "DT's signing keys were last fetched 2 d ago: Connection refused; they are used for 7 d"
        wait_until(lambda: readiness(receiver)[1]["warnings"] == [warning], what=warning)
        receiver.stop()

        receiver.shift_clock(8 * DAY)
        receiver.start(ready=False)
        later = int(time.time() + 8 * DAY)
        body = event("eight days later")
        assert receiver.push(body, signed(own, body, iat=later, exp=later + 300)) == (503, "signing key unknown")
        error = "DT's signing keys were last fetched 8 d ago: Connection refused; after 7 d they are not used"
        wait_until(lambda: error in readiness(receiver)[1]["errors"], what=error)


@pytest.mark.parametrize("change", [hang, drip_head, redirect], ids=["hangs", "drips", "redirects"])
def test_pushes_with_known_keys_are_accepted_while_the_issuer_misbehaves(
    change: Callable[[Issuer], None], start_receiver: StartReceiver
) -> None:
    with Issuer() as own:
        receiver = start_receiver(clock=time.time(), **environment(own))
        change(own)
        receiver.shift_clock(2 * HOUR)  # it is time to fetch
        end_cool_down(receiver)
        asked = len(own.requests)
        unknown = signed(own, b"{}", {"alg": "ES256", "kid": "unknown"})
        assert receiver.push(b"{}", unknown) == (503, "signing key unknown")
        wait_until(lambda: len(own.requests) > asked, what="a request for keys")
        for number in range(20):
            body = event(f"misbehaves {number}")
            now = int(time.time() + 2 * HOUR)
            assert receiver.push(body, signed(own, body, iat=now, exp=now + 300)) == (200, "accepted")


@pytest.mark.serial
@pytest.mark.parametrize("workers", [1, 3])
def test_when_the_issuer_changes_its_keys_each_push_gets_200_and_one_at_most_gets_503_before(
    workers: int, start_receiver: StartReceiver
) -> None:
    with Issuer() as own:
        receiver = start_receiver(**{**environment(own), "WEB_CONCURRENCY": str(workers)})
        time.sleep(2.0)  # each worker has looked for keys
        unknown = []
        for rotation in range(3):
            time.sleep(0.5)  # the pushes of the last rotation may have woken a worker
            end_cool_down(receiver)
            own.rotate(keep=1)
            unknown.append(0)
            for number in range(30):  # 20 a second
                time.sleep(0.05)
                body = event(f"rotation {rotation} {number} of {workers}")
                key_id = own.key_id if number % 2 else next(iter(own.keys))
                while (response := receiver.push(body, own.sign(body, key_id=key_id))) != (200, "accepted"):
                    assert response == (503, "signing key unknown")
                    unknown[-1] += 1
                    time.sleep(1.5)  # DT waits longer
        assert max(unknown) <= 1
        assert receiver.log.count("have changed") == 4


def end_cool_down(receiver: RunningReceiver) -> None:
    with closing(sqlite3.connect(receiver.folder / "data/journal.sqlite", timeout=60)) as file, file:
        file.execute("UPDATE receiver_documents SET leased_until = 0")


def test_many_pushes_with_unknown_keys_wake_one_fetch(start_receiver: StartReceiver) -> None:
    with Issuer() as own:
        receiver = start_receiver("[receiver]\ndeliver = false\n", ready=False, **environment(own))
        body = event("without a dispatcher")
        wait_until(lambda: receiver.push(body, signed(own, body))[0] == 200, what="the keys")
        for number in range(200):
            unknown = signed(own, b"{}", {"alg": "ES256", "kid": f"unknown-{number}"})
            assert receiver.push(b"{}", unknown) == (503, "signing key unknown")
        assert own.requests == [PATH + DISCOVERY, JWKS]


def test_of_two_machines_on_one_database_one_fetches_the_keys(start_receiver: StartReceiver) -> None:
    with Issuer() as own:
        database = new_database()
        receivers = [start_receiver(DATABASE_URL=database, **environment(own)) for _ in range(2)]
        for number, receiver in enumerate(receivers):
            body = event(f"machine {number}")
            assert receiver.push(body, signed(own, body)) == (200, "accepted")
        assert own.requests == [PATH + DISCOVERY, JWKS]


def test_check_says_which_verified_when_and_how_old_the_keys_are(issuer: Issuer, start_receiver: StartReceiver) -> None:
    receiver = start_receiver(**environment(issuer, "test-secret"))
    wait_for_keys(receiver)
    body = event("check")
    assert receiver.push(body, signed(issuer, body)) == (200, "accepted")
    lines = [line for line in receiver.run("check").splitlines() if not line.startswith("warning")]
    assert lines[0] == "DT_SIGNATURE_SECRET has not been used yet"
    assert lines[1].startswith("DT_ORGANIZATION_ID was last used 20")
    assert lines[2].startswith("DT's signing keys: 1, fetched ")
    assert lines[2].endswith(" s ago; for 2 organizations: another0organization, testorganization0000")
