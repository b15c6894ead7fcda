"""Shows the state of each neighbour as a metric, read from the same object as `/readyz`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prometheus_client import REGISTRY, Gauge

UP = Gauge(
    "ceremony_neighbour_up",
    "1 while the neighbour is ok, as /readyz has it; a role of this worker needs each that is listed.",
    ["neighbour"],
    registry=REGISTRY,
)


def show(states: Callable[[], Mapping[str, str]]) -> None:
    """Show these states from now on, at each scrape; those of a worker that ended go."""
    UP.clear()
    for name in states():
        UP.labels(name).set_function(lambda name=name: float(states().get(name) == "ok"))  # type: ignore[misc]  # mypy knows no type of a default
