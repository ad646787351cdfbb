"""The rules, the dashboard and the example for Prometheus name metrics that exist, and leave none out."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from s3tasks.counting import METRICS
from tests.conftest import REPOSITORY

FOLDER = REPOSITORY / "worker_config" / "prometheus"
RULES = [rule for group in yaml.safe_load((FOLDER / "s3tasks.rules.yaml").read_text())["groups"] for rule in group["rules"]]
DASHBOARD: dict[str, Any] = json.loads((FOLDER / "grafana-dashboard.json").read_text())
EXPRESSIONS = {
    **{rule["alert"]: rule["expr"] for rule in RULES},
    **{panel["title"]: " ".join(target["expr"] for target in panel["targets"]) for panel in DASHBOARD["panels"]},
}
# What Prometheus makes itself, and the gauge that is not counted.
GIVEN = {"s3tasks_info": {"version"}}


def series_of(expression: str) -> set[str]:
    return set(re.findall(r"\bs3tasks_\w+", expression))


def shown() -> dict[str, set[str]]:
    """Every series that a worker has, with its labels."""
    series = dict(GIVEN)
    for metric in METRICS:
        labels = set(metric.labels)
        if metric.bounds:
            series |= {f"{metric.name}_bucket": {*labels, "le"}, f"{metric.name}_sum": labels, f"{metric.name}_count": labels}
        else:
            series[metric.name] = labels
    return series


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_an_expression_names_series_that_workers_have(name: str) -> None:
    assert series_of(EXPRESSIONS[name]) <= shown().keys()


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_an_expression_groups_by_labels_that_its_series_have(name: str) -> None:
    expression = EXPRESSIONS[name]
    grouped = {label.strip() for labels in re.findall(r"\bby \(([^)]*)\)", expression) for label in labels.split(",")}
    matched = set(re.findall(r"[{,]\s*(\w+)(?:=~|=|!=)", expression)) - {"job"}
    known = set().union(*(shown()[series] for series in series_of(expression)))

    assert grouped | matched <= known


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_every_metric_is_on_the_dashboard(metric: Any) -> None:
    expressions = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]

    assert any(series.startswith(metric.name) for expression in expressions for series in series_of(expression))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_says_how_urgent_it_is_and_what_it_means(rule: Any) -> None:
    assert rule["labels"]["severity"] in ("page", "ticket")
    assert rule["annotations"].keys() == {"summary", "description"}


def test_all_alerts_are_told_in_the_guide() -> None:
    guide = (REPOSITORY / "worker_config" / "README.md").read_text()

    assert [rule["alert"] for rule in RULES if f"`{rule['alert']}`" not in guide] == []


def test_the_dashboard_overlaps_nowhere_and_takes_any_data_source() -> None:
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in DASHBOARD["panels"]]

    assert len(set(places)) == len(places)
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(places)
    assert {panel["datasource"]["uid"] for panel in DASHBOARD["panels"]} == {"${datasource}"}


def test_the_example_scrapes_and_loads_the_rules_beside_it() -> None:
    example = yaml.safe_load((FOLDER / "prometheus.yaml").read_text())

    assert [Path(name).name for name in example["rule_files"]] == ["s3tasks.rules.yaml"]
    assert {job["job_name"] for job in example["scrape_configs"]} == {"s3tasks"}
