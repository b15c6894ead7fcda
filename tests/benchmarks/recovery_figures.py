"""Figures of the starts on full changelogs."""

from __future__ import annotations

from typing import Any

from tests.benchmarks.recovery import RecoveryRun
from tests.benchmarks.report import Row, number


def summary(run: RecoveryRun) -> dict[str, Any]:
    return {
        "recovery_rows_per_s": run.rows_per_s,
        "recovery_driver_rows_per_s": run.driver_rows_per_s,
        "recovery_cpu_us_per_row": run.cpu_us_per_row,
        "recovery_bytes_per_row": run.bytes_per_row,
        "recovery_row_bytes": run.row_bytes,
        "recovery_rows": run.rows,
        "recovery_s": run.taken_s.median,
        "start_s": run.empty_s.median,
        "start_with_rows_s": run.full_s.median,
    }


def rows(run: RecoveryRun) -> list[Row]:
    return [
        Row(
            "recovery: rows/s",
            f"{run.rows_per_s:,.0f}",
            f"{run.rows:,} running ceremonies of {run.row_bytes} bytes in {number(run.taken_s.median)} s from the"
            f" assignment on; process ready in {run.full_s.median:.1f} s, in {run.empty_s.median:.1f} without them",
        ),
        Row(
            "recovery: rows/s of the driver alone",
            f"{run.driver_rows_per_s:,.0f}",
            "the changelogs read into a dict, nothing decoded",
        ),
        Row(
            "recovery: CPU of the worker, µs a row",
            f"{run.cpu_us_per_row:.1f}",
            f"more than without them; and {run.bytes_per_row:,.0f} bytes of memory a row",
        ),
    ]
