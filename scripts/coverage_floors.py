"""Combines the coverage of all test processes and fails if a part is covered less than its floor.

The floor of a pure package counts branches alone; that of the whole counts lines and branches together. Tests marked
`uncounted`, which prove by volume and by load, do not count: other tests must cover the same lines.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

# Package → per cent of its branches.
BRANCH_FLOORS = {"tables/": 85.0, "steps/": 85.0}
# Per cent of all lines and branches.
WHOLE_FLOOR = 80.0
UNCOUNTED = "pragma: no cover"
REPORT = Path("build/coverage.json")

Summary = Mapping[str, int]


def measured() -> Mapping[str, Any]:
    """Combine the data of all processes and return the report."""
    REPORT.parent.mkdir(exist_ok=True)
    coverage = [sys.executable, "-m", "coverage"]
    subprocess.run([*coverage, "combine", "--quiet"], check=True)
    subprocess.run([*coverage, "json", "--quiet", "-o", str(REPORT)], check=True)
    report: dict[str, Any] = json.loads(REPORT.read_text())
    return report


def percent(summaries: Iterable[Summary], *kinds: str) -> float:
    """Return the covered per cent of the named kinds (`lines`, `branches`) over several files; 0 without data."""
    covered = wanted = 0
    for summary in summaries:
        for kind in kinds:
            covered += summary[f"covered_{kind}"]
            wanted += summary["num_statements" if kind == "lines" else "num_branches"]
    return 100.0 * covered / wanted if wanted else 0.0


def shortfalls(files: Mapping[str, Any]) -> Iterator[str]:
    """Print each part's figure; yield a line for each part below its floor."""
    for folder, floor in BRANCH_FLOORS.items():
        of_folder = [file["summary"] for name, file in files.items() if name.startswith(folder)]
        reached = percent(of_folder, "branches")
        print(f"coverage: {folder} {reached:.1f} % of the branches (floor {floor:.0f} %)")
        if reached < floor:
            yield f"{folder} is at {reached:.1f} % of its branches, the floor is {floor:.0f} %"
    whole = percent((file["summary"] for file in files.values()), "lines", "branches")
    print(f"coverage: the whole {whole:.1f} % of lines and branches (floor {WHOLE_FLOOR:.0f} %)")
    if whole < WHOLE_FLOOR:
        yield f"the whole is at {whole:.1f} % of lines and branches, the floor is {WHOLE_FLOOR:.0f} %"


def uncounted() -> Iterator[str]:
    """Yield the places of the pure packages that are excluded from coverage."""
    for folder in BRANCH_FLOORS:
        for path in sorted(Path(folder).rglob("*.py")):
            for number, line in enumerate(path.read_text().splitlines(), 1):
                if UNCOUNTED in line:
                    yield f"{path}:{number}: `{UNCOUNTED}` is not allowed here"


def main() -> int:
    """Return exit code 1, with the reasons on stderr, if a floor is not reached."""
    failures = [*shortfalls(measured()["files"]), *uncounted()]
    for failure in failures:
        print(f"coverage: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
