"""Reads, folds and writes golden logs.

A file holds one JSON object a line: first the definition's text and the fold number, then each command with its origin
and the digest of row and effects after it. Renew them with `python -m tests.tables.golden.log renew`: where a digest
differs, `FOLD` in tables/effects.py must be higher than that of the newest archived release. With no argument the
program prints the digest of everything, for a comparison under another PYTHONHASHSEED.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import msgspec
from msgspec.structs import astuple

from steps.registry import all_kinds
from tables.commands import AnyCommand, Origin, decode_command, encode_command
from tables.definitions.loader import load
from tables.effects import FOLD
from tables.fold.decide import decide
from tables.instance import Instance, encode_instance
from tests.releases.archive import newest_fold

FOLDER = Path(__file__).parent
KINDS = all_kinds()
_encode = msgspec.json.Encoder().encode


@dataclass
class GoldenLog:
    """One recorded ceremony."""

    path: Path
    fold: int
    definition: str
    entries: list[tuple[AnyCommand, Origin]]
    digests: list[str]

    @classmethod
    def read(cls, path: Path) -> GoldenLog:
        head, *lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        entries = [(decode_command(json.dumps(line["command"]).encode()), Origin(*line["origin"])) for line in lines]
        return cls(path, head["fold"], head["definition"], entries, [line["sha256"] for line in lines])

    def folded(self) -> list[str]:
        """Return the digests as this release folds the log."""
        definition = load(self.definition, "probe.yaml", KINDS)
        row: Instance | None = None
        found = []
        for command, origin in self.entries:
            decision = decide(row, command, origin, definition, KINDS)
            row = decision.row
            body = b"" if row is None else encode_instance(row)
            found.append(hashlib.sha256(body + b"\n" + _encode(decision.effects)).hexdigest())
        return found

    def write(self, digests: Sequence[str]) -> None:
        lines = [json.dumps({"fold": FOLD, "definition": self.definition})]
        for (command, origin), digest in zip(self.entries, digests, strict=True):
            body = json.loads(encode_command(command))
            lines.append(json.dumps({"command": body, "origin": astuple(origin), "sha256": digest}))
        self.path.write_text("\n".join(lines) + "\n", "utf-8")


def golden_logs() -> list[GoldenLog]:
    return [GoldenLog.read(path) for path in sorted(FOLDER.glob("*.jsonl"))]


def renew() -> int:
    """Write new digests; refuse where they differ although the fold number was not raised since the last release."""
    logs = [(log, log.folded()) for log in golden_logs()]
    released = newest_fold()
    stale = [log.path.name for log, digests in logs if digests != log.digests and released >= FOLD]
    if stale:
        print(f"{', '.join(stale)}: decide returns something else; raise FOLD in tables/effects.py above {released}")
        return 1
    for log, digests in logs:
        log.write(digests)
    print(f"{len(logs)} golden logs renewed at fold {FOLD}")
    return 0


def record(seeds: Sequence[int], longest: int) -> int:
    """Record new ceremonies of the hostile player; existing files stay."""
    from tests.tables.properties.play import begun  # noqa: PLC0415
    from tests.tables.properties.players import Hostile  # noqa: PLC0415

    for seed in seeds:
        rng = Random(seed)
        world = begun(rng, KINDS)
        hostile = Hostile(world, rng)
        for _ in range(longest):
            if world.row is None:
                break
            hostile.move()
        small = [(command, origin) for command, origin in world.log if len(encode_command(command)) < 4096]
        log = GoldenLog(FOLDER / f"seed-{seed:05}.jsonl", FOLD, world.definition.text, small, [])
        if not log.path.exists():
            log.write(log.folded())
    return 0


def main(arguments: Sequence[str]) -> int:
    if list(arguments) == ["renew"]:
        return renew()
    if list(arguments[:1]) == ["record"]:
        return record([int(seed) for seed in arguments[1:]], 60)
    total = hashlib.sha256("".join(digest for log in golden_logs() for digest in log.folded()).encode())
    print(total.hexdigest())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
