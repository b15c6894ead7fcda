"""Combines what the tests' processes measured and fails where a part is covered less than its floor.

A part of the pure code is held to its branches alone, the whole to lines and branches together. Tests marked
`uncounted`, which prove by volume and by load, add nothing here: what they run has to be covered by others.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

# Per cent of the branches of each folder.
BRANCH_FLOORS = {"tables/": 85.0, "steps/": 85.0}
# Per cent of all lines and branches.
WHOLE_FLOOR = 80.0
UNCOUNTED = "pragma: no cover"
REPORT = Path("build/coverage.json")

Summary = Mapping[str, int]


def measured() -> Mapping[str, Any]:
    """The combined report of all processes."""
    REPORT.parent.mkdir(exist_ok=True)
    coverage = [sys.executable, "-m", "coverage"]
    subprocess.run([*coverage, "combine", "--quiet"], check=True)
    subprocess.run([*coverage, "json", "--quiet", "-o", str(REPORT)], check=True)
    report: dict[str, Any] = json.loads(REPORT.read_text())
    return report


def percent(summaries: Iterable[Summary], *kinds: str) -> float:
    """Covered per cent of the named kinds (`lines`, `branches`) over several files; 0 where nothing was measured."""
    covered = wanted = 0
    for summary in summaries:
        for kind in kinds:
            covered += summary[f"covered_{kind}"]
            wanted += summary["num_statements" if kind == "lines" else "num_branches"]
    return 100.0 * covered / wanted if wanted else 0.0


def shortfalls(files: Mapping[str, Any]) -> Iterator[str]:
    """Print each part's figure; yield a line for each that is below its floor."""
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
    """Places of the pure code that ask not to be counted."""
    for folder in BRANCH_FLOORS:
        for path in sorted(Path(folder).rglob("*.py")):
            for number, line in enumerate(path.read_text().splitlines(), 1):
                if UNCOUNTED in line:
                    yield f"{path}:{number}: `{UNCOUNTED}` is not allowed here"


def main() -> int:
    """Exit code 1, with the reasons on stderr, when a floor is not reached."""
    failures = [*shortfalls(measured()["files"]), *uncounted()]
    for failure in failures:
        print(f"coverage: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
