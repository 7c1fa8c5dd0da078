"""A small identity service that signs pushes with keys of its own, as DT does, and publishes them."""

from __future__ import annotations

import base64
import json
import ssl
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import TracebackType
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, generate_private_key

from receiver.keys import DISCOVERY
from receiver.signature import sign_asymmetric

TEST_ORGANIZATION = "testorganization0000"
"""The organization in whose name an issuer signs."""

PATH = "/data-connector"
JWKS = "/data-connector/keys"

Answer = Callable[[BaseHTTPRequestHandler], None]


class Issuer:
    """Serves discovery and keys at `url` on this machine, from entering it as a context until its end.

    It signs with the newest of its `keys`. `answer`, if set, responds to all requests in place of it, and `jwks_uri` is
    where it says that its keys are. `requests` are the paths that were asked for. With `certificate`, a file with a
    private key and its certificate, it uses HTTPS.
    """

    def __init__(self, certificate: Path | None = None) -> None:
        self.keys: dict[str, EllipticCurvePrivateKey] = {}
        self.answer: Answer | None = None
        self.requests: list[str] = []
        self.jwks_uri: str | None = None
        self._certificate = certificate
        self._count = 0
        self.rotate()

    def __enter__(self) -> Issuer:
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.requests.append(self.path)
                (issuer.answer or issuer.respond)(self)

            def log_message(self, *arguments: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        if self._certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self._certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        scheme = "http" if self._certificate is None else "https"
        self.origin = f"{scheme}://127.0.0.1:{self._server.server_port}"
        self.url = self.origin + PATH
        Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop responding: connections are refused from now on."""
        self._server.shutdown()
        self._server.server_close()

    @property
    def key_id(self) -> str:
        """The id of the newest key."""
        return list(self.keys)[-1]

    def rotate(self, keep: int | None = None) -> str:
        """Sign with a new key from now on; of the others, only the newest `keep` stay valid. Returns its id."""
        if keep is not None:
            self.keys = dict(list(self.keys.items())[-keep:]) if keep else {}
        self._count += 1
        self.keys[f"key-{self._count}"] = generate_private_key(SECP256R1())
        return self.key_id

    def sign(
        self, body: bytes, organization: str = TEST_ORGANIZATION, now: float | None = None, key_id: str | None = None
    ) -> dict[str, str]:
        """The header with which this issuer would push `body` at `now`, signed with the newest key or the one named."""
        chosen = key_id or self.key_id
        now = time.time() if now is None else now
        return sign_asymmetric(body, self.keys[chosen], chosen, self.url, organization, now)

    def key_set(self) -> dict[str, object]:
        """The JSON Web Key Set with the public keys."""
        return {"keys": [jwk(key_id, key) for key_id, key in self.keys.items()]}

    def respond(self, request: BaseHTTPRequestHandler) -> None:
        """Respond as an identity service that works."""
        if request.path == PATH + DISCOVERY:
            send(request, {"issuer": self.url, "jwks_uri": self.jwks_uri or self.origin + JWKS})
        elif request.path == JWKS:
            send(request, self.key_set())
        else:
            send(request, {}, 404)


def jwk(key_id: str, key: EllipticCurvePrivateKey) -> dict[str, str]:
    """The public half of a key as JSON (RFC 7517, RFC 7518)."""
    point = key.public_key().public_numbers()
    x, y = (base64.urlsafe_b64encode(n.to_bytes(32, "big")).rstrip(b"=").decode() for n in (point.x, point.y))
    return {"kid": key_id, "kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "x": x, "y": y}


def send(request: BaseHTTPRequestHandler, content: object, status: int = 200) -> None:
    """Respond with JSON, or with bytes as they are."""
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    request.send_response(status)
    request.send_header("Content-Type", "application/json")
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    request.wfile.write(body)
