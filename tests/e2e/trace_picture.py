"""Draws docs/trace.svg from the spans of one backlog review: python -m tests.e2e.trace_picture [FILE].

The simulated agents are slow enough to be seen, and the QA agents fail once, so that a step is tried again.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from ceremony.dev.ray_simulation.knobs import Knobs
from tests.e2e.traces import attributes, parent_id, span_id, start_traced, traced_world
from tests.e2e.world import until

CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
# With this seed one agent of the step `deliberate_qa` fails.
KNOBS = Knobs(latency=1.0, jitter=0.6, failure_rate=0.1, seed=12)
THINKING_SECONDS = 1.5
# By the first word of a span's name.
COLOURS = {"ceremony": "#4c566a", "step": "#5e81ac", "ray_executor": "#d08770", "nats": "#d08770", "answer": "#a3be8c"}
PERSON, FAILED = "#b48ead", "#bf616a"
# A shorter span would not be seen.
NARROWEST_SECONDS = 0.03


async def spans_of_a_review() -> list[ReadableSpan]:
    """Run the review and return its spans."""
    exporter = InMemorySpanExporter()
    with tempfile.TemporaryDirectory(prefix="ceremony-trace-") as folder:
        async with traced_world(Path(folder), exporter, knobs=KNOBS) as world:
            await until(lambda: world.ok("ray_executor"), "the executor is there")
            instance_id = await start_traced(world, "backlog_review", "sprint-7", CALLER)

            async def asks() -> bool:
                return bool((await world.get(instance_id)).open_gates)

            await until(asks, "the product owner is asked")
            await asyncio.sleep(THINKING_SECONDS)
            await world.finish(instance_id)
    return list(exporter.get_finished_spans())


def in_order(spans: Sequence[ReadableSpan]) -> list[tuple[int, ReadableSpan]]:
    """The spans as a tree, each with its depth: children below their parent, by their start."""
    known = {span_id(span) for span in spans}
    below: dict[str, list[ReadableSpan]] = {}
    for span in sorted(spans, key=lambda one: (one.start_time or 0, one.end_time or 0)):
        parent = parent_id(span)
        below.setdefault(parent if parent in known else "", []).append(span)
    found: list[tuple[int, ReadableSpan]] = []

    def add(parent: str, depth: int) -> None:
        for span in below.get(parent, ()):
            found.append((depth, span))
            add(span_id(span), depth + 1)

    add("", 0)
    return found


def draw(spans: Sequence[ReadableSpan], path: Path) -> None:
    """Draw the spans as bars over time, with an arrow for each link to the attempt before."""
    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "ceremony"
    from matplotlib import pyplot as plt  # noqa: PLC0415 - after the choice of the backend

    rows = in_order(spans)
    begin = min(span.start_time or 0 for span in spans)
    figure, axes = plt.subplots(figsize=(11, 0.27 * len(rows) + 0.9))
    places: dict[str, tuple[float, float, int]] = {}
    for number, (depth, span) in enumerate(rows):
        start, end = ((at or 0) - begin for at in (span.start_time, span.end_time))
        left, width = start / 1e9, max((end - start) / 1e9, NARROWEST_SECONDS)
        places[span_id(span)] = left, left + width, number
        failed = span.status.description or ""
        colour = FAILED if failed else COLOURS.get(span.name.split()[0], PERSON)
        axes.barh(number, width, left=left, height=0.62, color=colour)
        label = f"{'    ' * depth}{_label(span)}"
        axes.text(-0.1, number, label, ha="left", va="center", fontsize=8, transform=axes.get_yaxis_transform())
        took = f" {width:.2f} s" if end - start >= 10_000_000 else ""
        axes.text(left + width, number, f" {failed}{took}", va="center", fontsize=7, color="#4c566a")
    for _, span in rows:
        for link in span.links:
            _, left, above = places[f"{link.context.span_id:016x}"]
            right, _, below = places[span_id(span)]
            axes.annotate("", (right, below), (left, above), arrowprops={"arrowstyle": "->", "color": FAILED})
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_yticks([])
    axes.set_xlabel("seconds", fontsize=8)
    axes.tick_params(labelsize=8)
    for side in ("top", "left", "right"):
        axes.spines[side].set_visible(False)
    figure.subplots_adjust(left=0.33, right=0.93, top=0.99, bottom=0.07)
    for text in axes.texts:
        if text.get_transform() == axes.get_yaxis_transform():
            text.set_x(-0.47)
    figure.savefig(path, metadata={"Date": None, "Creator": None})


def _label(span: ReadableSpan) -> str:
    attempt = attributes(span).get("ceremony.attempt", 1)
    return f"{span.name} (attempt {attempt})" if span.name.startswith("step ") and attempt != 1 else span.name


def main() -> None:
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/trace.svg")
    spans = asyncio.run(spans_of_a_review())
    draw(spans, path)
    print(f"{path}: {len(spans)} spans")


if __name__ == "__main__":
    main()
