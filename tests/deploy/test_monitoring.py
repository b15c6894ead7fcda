"""Alerts, dashboards and their pages agree with each other and with the metrics that the code declares."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from scripts.metrics_page import PAGE, declared, page

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "deploy/monitoring"
RUNBOOK = ROOT / "deploy/runbook/alerts.md"
DASHBOARDS = sorted((MONITORING / "dashboards").glob("*.json"))
# Metrics of Prometheus' client about the process, and labels that Prometheus itself adds.
OF_THE_PROCESS = frozenset({"process_start_time_seconds", "process_cpu_seconds_total", "process_resident_memory_bytes"})
ADDED_LABELS = frozenset({"instance", "le"})
SELECTOR = re.compile(r"\b([a-z][a-z_]*_[a-z_]+)\b(?:\{([^}]*)\})?(?!\s*\()")
GROUPING = re.compile(r"\b(?:by|on|without)\s*\(([^)]*)\)")
# Columns of Grafana's grid.
COLUMNS = 24


class Query(NamedTuple):
    """An expression with its place."""

    place: str
    text: str


def rules() -> list[dict[str, Any]]:
    found = yaml.safe_load((MONITORING / "alerts.yaml").read_text())
    return [rule for group in found["groups"] for rule in group["rules"]]


def panels(file: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(file.read_text())["panels"]
    return found


def queries() -> Iterator[Query]:
    for rule in rules():
        yield Query(rule["alert"], rule["expr"])
    for file in DASHBOARDS:
        for panel in panels(file):
            for target in panel.get("targets", ()):
                yield Query(f"{file.name}: {panel['title']}", target["expr"])
        for variable in json.loads(file.read_text())["templating"]["list"]:
            if variable["type"] == "query":
                text = variable["query"]["query"].removeprefix("label_values(").removesuffix(")")
                yield Query(f"{file.name}: ${variable['name']}", text.partition(",")[0])


def names_of(query: str) -> list[tuple[str, str]]:
    """Return each series that a query selects, with the text between its braces."""
    return [(name, labels) for name, labels in SELECTOR.findall(_without_groupings(query)) if not _is_function(name)]


def _without_groupings(query: str) -> str:
    return GROUPING.sub(" ", query)


def _is_function(name: str) -> bool:
    return name == "histogram_quantile" or name.startswith("__")


SERIES = {series: metric for metric in declared() for series in metric.series}


def test_every_metric_that_a_rule_or_a_panel_names_is_declared() -> None:
    # specification 29.4
    found = list(queries())
    assert len(found) > 100
    unknown = [
        f"{query.place}: {name}"
        for query in found
        for name, _ in names_of(query.text)
        if name not in SERIES and name not in OF_THE_PROCESS
    ]
    assert not unknown
    assert all(names_of(query.text) for query in found), "each names at least one"


def test_every_label_that_a_rule_or_a_panel_names_is_one_of_its_metric() -> None:
    wrong = []
    for query in queries():
        selected = names_of(query.text)
        for name, braces in selected:
            known = set(SERIES[name].labels) | ADDED_LABELS if name in SERIES else ADDED_LABELS
            used = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", braces))
            wrong += [f"{query.place}: {name} has no label {label}" for label in used - known]
        all_known = {label for name, _ in selected if name in SERIES for label in SERIES[name].labels} | ADDED_LABELS
        for labels in GROUPING.findall(query.text):
            used = {label.strip() for label in labels.split(",") if label.strip()}
            wrong += [f"{query.place}: no metric has the label {label}" for label in used - all_known]
    assert not wrong


def test_every_metric_is_on_a_dashboard_or_in_a_rule() -> None:
    """A metric that nobody looks at is a cost without a use."""
    used = {SERIES[name].name for query in queries() for name, _ in names_of(query.text) if name in SERIES}
    assert {metric.name for metric in declared()} - used == set()


# -- alerts


def test_every_alert_has_its_section_in_the_runbook_and_every_section_its_alert() -> None:
    # specification 29.4
    sections = re.findall(r"^### (.+)$", RUNBOOK.read_text(), re.MULTILINE)
    assert sorted(sections) == sorted(rule["alert"] for rule in rules())
    for rule in rules():
        assert rule["annotations"]["runbook_url"] == f"deploy/runbook/alerts.md#{rule['alert'].lower()}"


def test_the_sections_give_meaning_the_doctors_words_and_a_remedy() -> None:
    for rule in rules():
        section = RUNBOOK.read_text().partition(f"### {rule['alert']}\n")[2].partition("\n##")[0]
        assert all(word in section for word in ("**Meaning.**", "**Doctor says**", "**Do.**")), rule["alert"]
        assert f"`{rule['annotations']['doctor']}`" in section, rule["alert"]


def test_the_doctor_says_what_an_alert_promises() -> None:
    # specification 29.4
    said = "\n".join(
        path.read_text()
        for package in ("tables", "streams", "bridge", "ceremony")
        for path in (ROOT / package).rglob("*.py")
    )
    missing = [rule["alert"] for rule in rules() if rule["annotations"]["doctor"] not in said]
    assert not missing


def test_every_alert_has_a_severity_a_summary_and_a_test() -> None:
    tests = yaml.safe_load((MONITORING / "alerts_test.yaml").read_text())["tests"]
    cases = [case for test in tests for case in test["alert_rule_test"]]
    fire = {case["alertname"] for case in cases if case.get("exp_alerts")}
    silent = {case["alertname"] for case in cases if not case.get("exp_alerts")}
    for rule in rules():
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}
        assert rule["annotations"]["summary"]
        assert rule["alert"] in fire, f"{rule['alert']}: no test lets it fire"
        assert rule["alert"] in silent, f"{rule['alert']}: no test shows it silent"


# -- dashboards


@pytest.mark.parametrize("file", DASHBOARDS, ids=lambda file: file.stem)
def test_a_dashboard_is_sound(file: Path) -> None:
    """Ids are unique, nothing overlaps or leaves the grid, and every target has a query and the chosen Prometheus."""
    whole = json.loads(file.read_text())
    assert whole["uid"] == f"ceremony-{file.stem}"
    assert whole["title"].startswith("Ceremony engine: ")
    found = whole["panels"]
    assert len({panel["id"] for panel in found}) == len(found)
    taken: set[tuple[int, int]] = set()
    for panel in found:
        at = panel["gridPos"]
        assert at["x"] >= 0 and at["x"] + at["w"] <= COLUMNS
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, f"{panel['title']} lies upon another panel"
        taken |= cells
        if panel["type"] == "row":
            continue
        assert panel["title"] and panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
        assert all(target["expr"] and target["datasource"]["uid"] == "${datasource}" for target in panel["targets"])
    variables = {variable["name"] for variable in whole["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", file.read_text())) - {"__rate_interval", "__all"}
    assert used == variables


@pytest.mark.parametrize("file", DASHBOARDS, ids=lambda file: file.stem)
def test_every_panel_is_explained_on_the_page_of_its_dashboard(file: Path) -> None:
    explained = re.findall(r"^\| \*\*(.+?)\*\* \|", (MONITORING / f"{file.stem}.md").read_text(), re.MULTILINE)
    assert explained == [panel["title"] for panel in panels(file) if panel["type"] != "row"]
    assert f"({file.stem}.md)" in (MONITORING / "README.md").read_text()


def test_the_uids_of_the_dashboards_differ() -> None:
    assert len({json.loads(file.read_text())["uid"] for file in DASHBOARDS}) == len(DASHBOARDS) == 4


# -- the page of the metrics


def test_the_page_of_the_metrics_is_that_of_the_code() -> None:
    # specification 29.4
    assert PAGE.read_text() == page(), "run scripts/metrics"


@pytest.mark.parametrize("metric", declared(), ids=lambda metric: metric.name)
def test_a_metric_is_named_as_prometheus_asks(metric: Any) -> None:
    """Base units, a counter ends in `_total`, and a gauge or a histogram does not."""
    assert re.fullmatch(r"ceremony_[a-z]+(_[a-z]+)*", metric.name)
    assert (metric.type == "counter") == metric.name.endswith("_total")
    assert metric.type != "histogram" or metric.name.endswith("_seconds")
    assert not re.search(r"_(ms|millis|minutes|kib|mib|count|created)\b", metric.name)
    assert metric.meaning and len(metric.meaning) < 140
    assert "le" not in metric.labels
