"""Measures the search for secrets and raw prompts, in µs of CPU per record: clean records, suspected ones, and secrets.

The best of all repetitions counts, so that other work on the machine is seldom measured with it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import msgspec
from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as pb
from rich.console import Console
from rich.table import Table

from bridge.grpc.redaction import encoded
from ceremony.heap import collect_seldom
from steps.secrets.redactor import TextRedactor
from streams.envelope import envelope, redacted_envelope
from tests.steps.secrets.ordinary import ordinary
from tests.steps.secrets.planted import planted

PROMPT = (
    "Review the story as a careful architect: list each risk, its owner, and the cheapest test that would show it. "
    * 10
)
MERGED = {"sources": ["payload"], "aggregation_type": "merge", "aggregated_result": {"a": 1, "b": [1, 2, 3]}}
SECRET = next(planted()).secret


class Case(NamedTuple):
    work: Callable[[], object]
    size: int
    """Bytes of the record."""


def event(output: object) -> bytes:
    payload = {
        "instance_id": "bench-17:S1",
        "step_id": "merge_3",
        "status": "COMPLETED",
        "current_state": "OPEN",
        "output": output,
        "attempt": 1,
    }
    return envelope("ceremony.step.executed", payload, "bench-17:S1/3/2@5", "bench-17:S1", 1_700_000_000_000)


def cases() -> Mapping[str, Case]:
    plain = TextRedactor()
    knowing = plain.of((PROMPT,))
    small, batch = event(MERGED), b"\n".join([event(MERGED)] * 500)
    prose = next(text for text in ordinary(200) if len(text) > 2000 and not plain.suspicious(event(text)))
    proposal, large = event({"proposal": (prose * 9)[:4096]}), event({"proposal": (prose * 99)[:65_536]})
    leaky = event({"proposal": f"{(prose * 9)[:4000]} {SECRET}"})
    answer = pb.GetPlanningCeremonyInstanceResponse(
        ceremony=pb.PlanningCeremonyInstance(
            instance_id="bench-17:S1",
            step_status={f"merge_{number}": "COMPLETED" for number in range(5)},
            step_outputs={f"merge_{number}": msgspec.json.encode(MERGED).decode() for number in range(5)},
            open_gates=[pb.OpenGate(step_id="ask", role="OWNER", message="Agree?")],
        ),
        success=True,
    )
    return {
        "an event": Case(lambda: plain.suspicious(small), len(small)),
        "an event, with a prompt of 1.1 KiB": Case(lambda: knowing.suspicious(small), len(small)),
        "500 events together, as fold and bridge look at them": Case(lambda: plain.suspicious(batch), len(batch)),
        "a proposal of 4 KiB": Case(lambda: plain.suspicious(proposal), len(proposal)),
        "a proposal of 64 KiB": Case(lambda: plain.suspicious(large), len(large)),
        "a proposal of 4 KiB with a secret, redacted": Case(lambda: redacted_envelope(leaky, plain), len(leaky)),
        "an answer of Get, encoded": Case(lambda: encoded(answer, plain), answer.ByteSize()),
        "the same without redaction": Case(answer.SerializeToString, answer.ByteSize()),
    }


def measure(repetitions: int, calls: int = 200) -> dict[str, tuple[int, float]]:
    """Return for each case the bytes of its record and the µs of CPU of one call, the best of all repetitions."""
    return {
        name: (case.size, min(_once(case.work, calls) for _ in range(repetitions))) for name, case in cases().items()
    }


def _once(work: Callable[[], object], calls: int) -> float:
    began = time.process_time()
    for _ in range(calls):
        work()
    return (time.process_time() - began) / calls * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.redaction", description=__doc__)
    parser.add_argument("--repetitions", type=int, default=15, help="the best of them counts (default: 15)")
    parser.add_argument("--json", action="store_true", help="print bytes and µs by case as one JSON object")
    options = parser.parse_args()
    collect_seldom()
    found = measure(options.repetitions)
    if options.json:
        print(json.dumps(found))
        return
    table = Table("record", "bytes", "µs", show_edge=False)
    for name, (size, micros) in found.items():
        table.add_row(name, f"{size:,}", f"{micros:.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
