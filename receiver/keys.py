"""DT's own keys: fetched from its identity service, stored in the journal, and looked up to verify pushes.

A thread in each process of intake reads the stored keys, so no push waits for the network, and only a push with an
unknown key waits for the journal. The process with the lease in the journal fetches new keys: every hour, and when a
push names an unknown key. A fetched set replaces the previous one; while fetching fails, the stored set is used until
it is seven days old.
https://openid.net/specs/openid-connect-discovery-1_0.html#ProviderConfig
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

from receiver.errors import JournalError, ReceiverError
from receiver.http_client import HttpClient, NoResponse, origin
from receiver.journal import Journal
from receiver.settings import Settings
from receiver.signature import Asymmetric, PublicKey, read_keys
from receiver.urls import is_secure_url

log = logging.getLogger(__name__)

REFRESH_SECONDS = 3600.0
RETRY_SECONDS = 300.0
"""How long to wait after a failure while the keys are still usable."""

COOL_DOWN_SECONDS = 30.0
"""Keys are fetched at most once in this time, even if many pushes name unknown keys."""

LOOK_SECONDS = 10.0
"""How often the stored keys are read, once there are usable ones."""

WAKE_SECONDS = 0.5
"""The stored keys are read at most once in this time, even if many pushes name unknown keys."""

OLD_SECONDS = 86400.0
MAX_AGE_SECONDS = 7 * 86400.0
"""Keys that were last fetched longer ago are not used, since DT may have withdrawn one of them."""

RESPONSE_SECONDS = 5.0
MAX_RESPONSE_BYTES = 64 * 1024
HEADERS = {"Accept": "application/json", "Connection": "close"}

DISCOVERY = "/.well-known/openid-configuration"
KEYS = "dt-signing-keys"
FAILURE = "dt-signing-keys-failure"
"""A separate document, so that a fetch that fails late does not overwrite keys that another process fetched."""


class FetchError(ReceiverError):
    """The keys cannot be fetched; the message says why."""


class Documents(Protocol):
    """The part of a journal or of its records that is read here."""

    def document(self, name: str) -> bytes | None: ...


@dataclass(frozen=True)
class StoredKeys:
    """The keys that were fetched last, and the last failure since then. Times are seconds since 1970."""

    keys: Mapping[str, PublicKey] = field(default_factory=dict)
    fetched_at: float | None = None
    failed_at: float | None = None
    reason: str = ""

    @classmethod
    def read(cls, documents: Documents, issuer: str) -> StoredKeys:
        """The keys of this issuer, and its last failure. Raises JournalUnavailable."""
        stored, failure = _decode(documents.document(KEYS)), _decode(documents.document(FAILURE))
        found = cls()
        fetched_at, failed_at = stored.get("fetched_at"), failure.get("failed_at")
        if stored.get("issuer") == issuer and isinstance(fetched_at, float):
            found = cls(read_keys(stored), fetched_at)
        if failure.get("issuer") == issuer and isinstance(failed_at, float) and failed_at > (found.fetched_at or 0.0):
            found = cls(found.keys, found.fetched_at, failed_at, str(failure.get("reason")))
        return found

    def age(self, now: float) -> float:
        """Seconds since the last successful fetch; infinite if there was none."""
        return float("inf") if self.fetched_at is None else now - self.fetched_at

    def usable(self, now: float) -> bool:
        """Whether the keys are recent enough to verify pushes."""
        return self.age(now) <= MAX_AGE_SECONDS

    def due(self, now: float) -> bool:
        """Whether it is time to fetch keys. While none is usable, only the lease limits how often.

        Times in the future stem from before the clock was set back, and count like equally distant times in the past.
        """
        if not self.usable(now):
            return True
        return abs(self.age(now)) >= REFRESH_SECONDS and abs(now - (self.failed_at or 0.0)) >= RETRY_SECONDS


class SigningKeys:
    """The keys in one process of intake. `fetch` returns the keys of an issuer; `clock` is the wall clock."""

    def __init__(
        self,
        settings: Settings,
        journal: Journal,
        fetch: Callable[[str], Mapping[str, PublicKey]] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._issuer = settings.issuer
        self._journal = journal
        self._fetch = fetch or fetch_keys
        self._clock = clock
        self._stored = StoredKeys()
        self._unknown: str | None = None
        """The unknown key that a push named, until keys have been fetched after it."""
        self._looked_at = float("-inf")
        self._wake = threading.Event()
        self.asymmetric = Asymmetric(settings.issuer, settings.organizations, self.find)

    def find(self, key_id: str) -> PublicKey | None:
        """The key with this id; None if it is unknown, which wakes the thread that fetches keys. Never blocks."""
        stored = self._stored
        key = stored.keys.get(key_id) if stored.usable(self._clock()) else None
        if key is None:
            self._unknown = key_id
            self._wake.set()
        return key

    def look_again(self) -> None:
        """Read the stored keys, at most every half second, as another process may have fetched new ones. May block."""
        if time.monotonic() - self._looked_at > WAKE_SECONDS:
            self._looked_at = time.monotonic()
            with suppress(JournalError):
                self._read()

    def start(self) -> None:
        """Read the stored keys, so that the first push finds them; then keep them current in a thread."""
        with suppress(JournalError):
            self._read()
        threading.Thread(target=self._run, name="signing keys", daemon=True).start()

    def refresh(self) -> None:
        """Read the stored keys, and fetch new ones if that is due and no other process does. Raises JournalUnavailable.

        Without the lease, an unknown key is looked up again at the next call.
        """
        self._read()
        unknown = self._unknown
        if unknown in self._stored.keys:
            unknown = self._unknown = None
        if unknown is None and not self._stored.due(self._clock()):
            return
        if self._journal.lease_document(KEYS, COOL_DOWN_SECONDS):
            self._unknown = None
            self._fetch_and_store()

    def _run(self) -> None:
        while True:
            try:
                self.refresh()
            except JournalError as error:
                log.debug("the journal is unavailable for DT's signing keys: %s", error)
            except Exception:
                log.exception("internal error while refreshing DT's signing keys")
            time.sleep(WAKE_SECONDS)
            self._wake.wait(LOOK_SECONDS if self._stored.usable(self._clock()) else WAKE_SECONDS)
            self._wake.clear()

    def _read(self) -> None:
        self._stored = StoredKeys.read(self._journal, self._issuer)

    def _fetch_and_store(self) -> None:
        before = self._stored
        try:
            keys = self._fetch(self._issuer)
        except FetchError as error:
            self._save(FAILURE, {"failed_at": self._clock(), "reason": str(error)})
            if str(error) != before.reason:
                log.warning("DT's signing keys cannot be fetched: %s", error)
            return
        jwks = [{"kid": key.id, "kty": "EC", "crv": "P-256", "x": key.x, "y": key.y} for key in keys.values()]
        self._stored = StoredKeys(keys, self._clock())
        self._save(KEYS, {"fetched_at": self._stored.fetched_at, "keys": jwks})
        if keys != before.keys:
            log.info("DT's signing keys have changed: now %s, before %s", _ids(keys), _ids(before.keys))
        elif before.reason:
            log.info("DT's signing keys can be fetched again; they have not changed")

    def _save(self, name: str, content: Mapping[str, object]) -> None:
        self._journal.save_document(name, json.dumps({"issuer": self._issuer, **content}).encode())


def _ids(keys: Mapping[str, PublicKey]) -> str:
    return ", ".join(sorted(keys)) or "none"


def _decode(document: bytes | None) -> dict[str, object]:
    """A stored JSON object; empty if there is none. A newer receiver may have stored another shape."""
    with suppress(ValueError, RecursionError):
        decoded = json.loads(document or b"{}")
        if isinstance(decoded, dict):
            return decoded
    return {}


def fetch_keys(issuer: str) -> Mapping[str, PublicKey]:
    """The keys that an issuer publishes, by id (OpenID Connect Discovery 1.0, RFC 7517). Raises FetchError.

    Two requests of at most 5 s each, not counting name resolution: over HTTPS, or HTTP on this machine, both to the
    issuer's own host and port, and without redirects.
    """
    configuration = _get(issuer.rstrip("/") + DISCOVERY)
    address = configuration.get("jwks_uri") if isinstance(configuration, dict) else None
    if not isinstance(address, str) or not is_secure_url(address):
        raise FetchError("its configuration has no valid jwks_uri")
    if origin(address) != origin(issuer):
        raise FetchError("its jwks_uri is on another host")
    keys = read_keys(_get(address))
    if not keys:
        raise FetchError("its key set has no key for ES256")
    return keys


def _get(address: str) -> object:
    """The JSON at an address. Raises FetchError."""
    client = HttpClient(address, RESPONSE_SECONDS)
    try:
        response = client.request("GET", address, HEADERS, max_bytes=MAX_RESPONSE_BYTES)
    except NoResponse as error:
        raise FetchError(str(error)) from None
    finally:
        client.close()
    if response.status != 200:
        raise FetchError(f"HTTP {response.status}")
    if len(response.body) > MAX_RESPONSE_BYTES:
        raise FetchError(f"its response has more than {MAX_RESPONSE_BYTES} bytes")
    try:
        return json.loads(response.body)
    except (ValueError, RecursionError):
        raise FetchError("its response is not JSON") from None
