"""The alerts and the dashboard in deploy/: they name metrics that exist, and show what happens."""

from __future__ import annotations

import json
import re
import subprocess
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, StartReceiver, wait_until
from support.pages import Page
from support.prometheus import Prometheus, program, scraping

from receiver.simulator import Simulator

RULES = ROOT / "deploy" / "prometheus-rules.yml"
DASHBOARD = json.loads((ROOT / "deploy" / "grafana-dashboard.json").read_text(encoding="utf-8"))
OPERATIONS = Page(ROOT / "docs" / "operations.md")
ALERTS = dict(re.findall(r"- alert: (\w+)\n +expr: (.+)\n", RULES.read_text(encoding="utf-8")))
TARGETS = [target for panel in DASHBOARD["panels"] for target in panel["targets"]]
SINKS = """
[sinks.archive]
type = "csv"
path = "events.csv"
[sinks.erp]
type = "webhook"
url = "https://127.0.0.1:9/"
"""


def metrics_in(expression: str) -> set[str]:
    """The metrics in an expression, without what Prometheus adds to the name of a histogram."""
    return {name.removesuffix("_bucket") for name in re.findall(r"\b(?:receiver_[a-z_]+|up)\b", expression)}


@pytest.mark.parametrize("expression", [*ALERTS.values(), *(target["expr"] for target in TARGETS)])
def test_every_expression_names_only_metrics_that_exist(expression: str) -> None:
    documented = {row[0].strip("`").partition("{")[0] for row in OPERATIONS.table("Metrics")}
    found = metrics_in(expression)
    assert found
    assert found - documented <= {"up"}


def test_every_alert_is_documented_with_its_runbook() -> None:
    text = RULES.read_text(encoding="utf-8")
    runbooks = re.findall(r"- alert: (\w+)\n(?: +.+\n)* +runbook: docs/operations.md#(\S+)\n", text)
    rows = OPERATIONS.table("Alerts")
    assert [(name.strip("`"), re.findall(r"\(#(.+)\)", see)[0]) for name, _, see in rows] == runbooks
    assert [name for name, _ in runbooks] == list(ALERTS)


def test_the_panels_of_the_dashboard_have_room_and_the_data_source_that_is_chosen() -> None:
    panels = DASHBOARD["panels"]
    cells = [
        {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        for at in (panel["gridPos"] for panel in panels)
    ]
    assert all(not first & second for first, second in combinations(cells, 2))
    assert max(x for each in cells for x, _ in each) < 24
    assert len({panel["id"] for panel in panels}) == len(panels)
    sources = [each["datasource"]["uid"] for panel in panels for each in [panel, *panel["targets"]]]
    assert set(sources) == {f"${{{DASHBOARD['templating']['list'][0]['name']}}}"}


def series(name: str, values: str) -> dict[str, str]:
    return {"series": name, "values": values}


RUNS = series('receiver_build_info{job="receiver",version="1"}', "1x300")
PUSHES = series('receiver_pushes_total{job="receiver",code="200",result="accepted"}', "0+4x300")
SINK = 'job="receiver",sink="erp"'


def rejected(reason: str) -> str:
    return f'receiver_pushes_total{{job="receiver",code="400",result="{reason}"}}'


@pytest.mark.parametrize(
    ("alert", "given", "minutes"),
    [
        ("ReceiverDown", [series('up{job="receiver",instance="a"}', "0x300")], 3),
        ("ReceiverPushesNotStored", [PUSHES, series('receiver_pushes_total{job="receiver",code="503"}', "0+1x300")], 5),
        ("ReceiverNothingArrives", [RUNS], 40),
        ("ReceiverNothingArrives", [RUNS, series(PUSHES["series"], "7x300")], 100),
        ("ReceiverNothingArrives", [RUNS, series(rejected("wrong secret").replace("400", "413"), "0+5x300")], 40),
        ("ReceiverPushesRejected", [RUNS, PUSHES, series(rejected("wrong secret"), "0+1x300")], 5),
        ("ReceiverNotRouting", [RUNS, PUSHES, series('receiver_unrouted_events{job="receiver"}', "5x300")], 15),
        ("ReceiverSinkPaused", [series(f"receiver_sink_paused{{{SINK}}}", "1x300")], 20),
        ("ReceiverSinkFallsBehind", [series(f"receiver_oldest_pending_age_seconds{{{SINK}}}", "0+60x300")], 70),
        ("ReceiverDeadLetters", [series(f"receiver_dead_letters{{{SINK}}}", "0x5 1x300")], 10),
        ("ReceiverQuarantinedPushes", [series('receiver_quarantined_pushes{job="receiver"}', "0x5 1x300")], 10),
        (None, [RUNS, PUSHES, series('up{job="receiver",instance="a"}', "1x300")], 120),
        (None, [RUNS], 20),
        (None, [RUNS, PUSHES, series(rejected("missing header X-Dt-Signature"), "0+1x300")], 120),
        (None, [series(f"receiver_sink_paused{{{SINK}}}", "1x5 0x300")], 20),
        (None, [series(f"receiver_oldest_pending_age_seconds{{{SINK}}}", "600x300")], 70),
    ],
)
def test_an_alert_fires_for_what_it_is_about_and_no_other(
    alert: str | None, given: list[dict[str, str]], minutes: int, tmp_path: Path
) -> None:
    query = "count by (alertname) (ALERTS{alertstate='firing'})"
    expected = [{"labels": f'{{alertname="{alert}"}}', "value": 1}] if alert else []
    test = {
        "interval": "1m",
        "input_series": given,
        "promql_expr_test": [{"expr": query, "eval_time": f"{minutes}m", "exp_samples": expected}],
    }
    (tmp_path / "test.yml").write_text(json.dumps({"rule_files": [str(RULES)], "tests": [test]}))  # JSON is YAML
    run = [program("promtool"), "test", "rules", str(tmp_path / "test.yml")]
    done = subprocess.run(run, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def shown(prometheus: Prometheus, target: dict[str, Any]) -> bool:
    """Whether a target of the dashboard has values, with the labels that its legend names."""
    found = prometheus.query(target["expr"].replace("$__rate_interval", "1m"))
    legend = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
    return bool(found) and all(legend == each["metric"].keys() for each in found)


def test_every_panel_shows_what_a_receiver_does_and_every_rule_is_evaluated(
    start_receiver: StartReceiver, tmp_path: Path
) -> None:
    receiver = start_receiver(SINKS)
    simulator = Simulator()
    with scraping(receiver, RULES, tmp_path) as prometheus:
        for target in TARGETS:
            wait_until(
                lambda target=target: (
                    receiver.push(simulator.body("touch")) == (200, "accepted") and shown(prometheus, target)
                ),
                60,
                what=f"values of {target['expr']}",
            )
        (group,) = wait_until(lambda: prometheus.get("rules")["groups"], what="the rules")
        wait_until(
            lambda: all(rule["health"] == "ok" for rule in prometheus.get("rules")["groups"][0]["rules"]),
            60,
            what=f"healthy rules, not {group}",
        )
        names = {rule["name"] for rule in group["rules"]}
        assert names == ALERTS.keys()
