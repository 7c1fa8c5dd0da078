"""What it costs to verify one push: processor time of this process, without server and journal."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

from werkzeug.test import EnvironBuilder
from werkzeug.wrappers import Request

from bench.tables import show
from receiver.signature import Asymmetric, read_keys, sign, verify
from receiver.simulator import Simulator
from receiver.testing.issuer import TEST_ORGANIZATION, Issuer

SECRET = "s" * 64


def measure(pushes: int, rounds: int) -> None:
    """Print the table of both headers."""
    issuer = Issuer()
    issuer.url = "https://identity.example"
    asymmetric = Asymmetric(issuer.url, frozenset({TEST_ORGANIZATION}), read_keys(issuer.key_set()).get)
    body = Simulator(1).body("temperature")
    now = time.time()
    by_secret, by_key = sign(body, SECRET, now), issuer.sign(body)
    verifiers = {
        "X-Dt-Signature: HS256, the secret": verifier(by_secret, body, None),
        "DT-Asymmetric-Signature: ES256, a key of DT": verifier(by_key, body, asymmetric),
        "both headers, both ways": verifier({**by_secret, **by_key}, body, asymmetric),
    }
    rows = [(name, f"{cost(call, pushes, rounds):.0f}") for name, call in verifiers.items()]
    show("Verifying a push", ["header", "CPU µs/push"], rows)


def verifier(headers: dict[str, str], body: bytes, asymmetric: Asymmetric | None) -> Callable[[], str]:
    request = Request(EnvironBuilder(method="POST", data=body, headers=list(headers.items())).get_environ())
    request.get_data(cache=True)
    return lambda: verify(request, {"A": SECRET}, asymmetric)


def cost(call: Callable[[], str], count: int, rounds: int) -> float:
    """Microseconds of processor time for one call, a median."""
    results = []
    for _ in range(rounds):
        began = time.process_time()
        for _ in range(count):
            call()
        results.append((time.process_time() - began) / count * 1e6)
    return median(results)
