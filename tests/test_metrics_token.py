"""`[receiver] metrics_token`: who may see `/metrics` and the details of `/readyz`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import RunningReceiver

from receiver.demo import metric_value
from receiver.errors import ConfigError
from receiver.settings import load

TOKEN = "token-of-the-pages"
CONFIG = f'[receiver]\nmetrics_token = "{TOKEN}"\n[sinks.console]\ntype = "stdout"\n'


@pytest.fixture(scope="module")
def receiver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningReceiver]:
    receiver = RunningReceiver(tmp_path_factory.mktemp("receiver"), CONFIG, None, {})
    try:
        yield receiver.start()
    finally:
        receiver.kill_all()


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer wrong",
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}",
        f"Basic {TOKEN}",
        "Basic dG9rZW4=",
        TOKEN,
        f"Bearer Bearer {TOKEN}",
        "Bearer t\u00f6ken",
    ],
    ids=ascii,
)
def test_without_the_token_metrics_and_the_details_of_readiness_are_hidden(
    authorization: str | None, receiver: RunningReceiver
) -> None:
    headers = {} if authorization is None else {"Authorization": authorization}
    metrics = receiver.http.request("GET", f"{receiver.url}/metrics", headers=headers)
    assert (metrics.status, metrics.headers["WWW-Authenticate"], metrics.data.decode()) == (
        401,
        "Bearer",
        "send Authorization: Bearer with the [receiver] metrics_token",
    )
    ready = receiver.http.request("GET", f"{receiver.url}/readyz", headers=headers)
    assert (ready.status, ready.json()) == (200, {"ready": True})


@pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
def test_with_the_token_metrics_and_the_details_of_readiness_are_shown(scheme: str, receiver: RunningReceiver) -> None:
    headers = {"Authorization": f"{scheme} {TOKEN}"}
    metrics = receiver.http.request("GET", f"{receiver.url}/metrics", headers=headers)
    text = metrics.data.decode()
    assert (metrics.status, "WWW-Authenticate" in metrics.headers) == (200, False)
    assert "\nreceiver_quarantined_pushes 0.0\n" in text
    assert metric_value(text, "receiver_quarantined_pushes") == 0
    assert TOKEN not in text
    ready = receiver.http.request("GET", f"{receiver.url}/readyz", headers=headers)
    assert (ready.status, ready.json()) == (200, {"ready": True, "errors": [], "warnings": []})


@pytest.mark.parametrize(
    ("option", "environment"),
    [('""', {}), ('{ env = "METRICS_TOKEN" }', {"METRICS_TOKEN": ""})],
    ids=["in the file", "from the environment"],
)
def test_an_empty_token_is_an_error_and_does_not_show_the_pages_to_everyone(
    option: str, environment: dict[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "config.toml"
    path.write_text(f"[receiver]\nmetrics_token = {option}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"config\.toml \[receiver\]: metrics_token"):
        load({"RECEIVER_CONFIG": str(path), **environment}, secret_required=False)
