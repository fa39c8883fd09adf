"""The Grafana dashboard and the code name the same metrics, and each panel says what it shows and what to do."""

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from chat.metrics import Metrics
from tests.support.scrape import Scrape

DASHBOARD = json.loads((Path(__file__).parents[2] / "infra/grafana/dashboard.json").read_text(encoding="utf-8"))
ROWS = [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"]
PANELS: list[dict[str, Any]] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES: list[str] = [target["expr"] for panel in PANELS for target in panel["targets"]]
VARIABLES = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
TARGET_LABELS = {"instance"}
"""What Prometheus itself puts on every series it scrapes."""


def every_series() -> Scrape:
    """The numbers of a container that has a tool and keeps copies of its journal."""
    metrics = Metrics()
    metrics.offer(["fetch_data"])
    metrics.spool_depth.labels("journal")
    return Scrape(metrics.exposition())


EXPOSED = every_series()


def named(text: str) -> set[str]:
    return set(re.findall(r"\brealtime_\w+", text))


def test_every_metric_on_the_dashboard_is_exposed() -> None:
    """No query asks for a name, suffix included, that the container does not have: Grafana would show nothing."""
    exposed = set().union(*EXPOSED.metrics().values())
    asked = set().union(*map(named, [*QUERIES, VARIABLES["instance"]["definition"]]))
    assert asked - exposed == set()
    assert "realtime_turn_tokens_per_second_bucket" in asked  # so something was read at all


def test_every_exposed_metric_is_on_the_dashboard() -> None:
    """What is counted can be looked at."""
    asked = set().union(*map(named, QUERIES))
    assert {name for name, samples in EXPOSED.metrics().items() if not samples & asked} == set()


@pytest.mark.parametrize("query", QUERIES)
def test_a_query_names_labels_that_its_metric_has(query: str) -> None:
    """In its matchers, values included, and in what it groups by: a wrong one would match nothing, without an error."""
    names = named(query)
    labels: dict[str, set[str]] = {label: set() for label in TARGET_LABELS}
    for name, pairs in EXPOSED.series():
        for label, value in pairs if name in names else ():
            labels.setdefault(label, set()).add(value)
    for group in re.findall(r"\bby \(([^)]*)\)", query):
        assert {label.strip() for label in group.split(",")} <= set(labels)
    matchers = [
        found for group in re.findall(r"\{([^}]*)\}", query) for found in re.findall(r'(\w+)(\S+?)"(.*?)"', group)
    ]
    assert ("instance", "=~", "$instance") in matchers
    for label, _, value in matchers:
        assert label in TARGET_LABELS or value in labels[label]


@pytest.mark.parametrize("panel", PANELS, ids=[panel["title"] for panel in PANELS])
def test_a_panel_explains_itself(panel: dict[str, Any]) -> None:
    """It has a title, a unit, and a description long enough to say what to do; counters are asked for their rate."""
    assert panel["title"]
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert len(panel["description"]) > 100
    for target in panel["targets"]:
        counters = re.findall(r"realtime_\w+_(?:total|bucket|sum|count)\b", target["expr"])
        assert len(counters) == len(re.findall(r"\b(?:rate|increase)\(", target["expr"]))


def test_the_dashboard_can_be_imported_anywhere() -> None:
    """It names no data source but its variable, is for Grafana 10 and later, and no panel lies on another."""
    sources = re.findall(r'"uid": "([^"]*)"', json.dumps(DASHBOARD["panels"] + DASHBOARD["templating"]["list"]))
    assert set(sources) == {"${datasource}"}
    assert VARIABLES["datasource"]["query"] == "prometheus"
    assert DASHBOARD["schemaVersion"] >= 38
    assert ROWS == ["Traffic", "Latency", "Tools", "Storage", "Connections"]
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    for one, other in combinations((panel["gridPos"] for panel in DASHBOARD["panels"]), 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        assert beside or one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
