"""Writes every query of the dashboards as a recording rule, so that promtool can parse them all.

Grafana's variables get a value first: a duration for an interval, a pattern for a name.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import yaml

DASHBOARDS = Path(__file__).resolve().parents[1] / "deploy" / "monitoring" / "dashboards"
VALUES = {"__rate_interval": "5m", "definition": ".*"}


def filled(expression: str) -> str:
    """Replace Grafana's variables. Raises KeyError for one that is not known."""
    return re.sub(r"\$\{?(\w+)\}?", lambda found: VALUES[found[1]], expression)


def recording_rules() -> list[dict[str, Any]]:
    """Return a rule for each query, named after its dashboard and panel."""
    found = []
    for file in sorted(DASHBOARDS.glob("*.json")):
        for panel in json.loads(file.read_text(encoding="utf-8"))["panels"]:
            for target in panel.get("targets", ()):
                name = f"{file.stem}:panel_{panel['id']}:{target['refId']}"
                found.append({"record": name, "expr": filled(target["expr"])})
    return found


if __name__ == "__main__":
    groups = {"groups": [{"name": "dashboards", "rules": recording_rules()}]}
    Path(sys.argv[1]).write_text(yaml.safe_dump(groups), encoding="utf-8")
