"""`python -m tests.checker`: collect a run, or load a recorded one, and print every violation. Exit code 1 if any."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tests.checker.check import check_run
from tests.checker.collect import collect, read_definitions
from tests.checker.recording import Run, StoredInstance, load, load_starts
from tests.checker.stores import collect_neo4j, collect_valkey

SHOWN = 50


def main(arguments: list[str] | None = None) -> int:
    options = _options(arguments)
    run = load(options.recording) if options.recording else _collected(options)
    if options.record:
        run.save(options.record)
    violations = check_run(run)
    for violation in violations[:SHOWN]:
        print(violation)
    if len(violations) > SHOWN:
        print(f"... and {len(violations) - SHOWN} more: {dict(Counter(v.rule for v in violations))}")
    ended = Counter(instance.status for instance in run.instances)
    print(f"{len(run.messages)} messages, {len(run.starts)} accepted starts, instances {dict(ended)}")
    print(f"{len(violations)} violations")
    return 1 if violations else 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.checker", description=__doc__)
    parser.add_argument("--recording", type=Path, help="judge this recorded run instead of a live one")
    parser.add_argument("--nats", default="nats://127.0.0.1:4222")
    parser.add_argument("--grpc", default="127.0.0.1:50057")
    parser.add_argument("--definitions", type=Path, default=Path("specs/ceremonies"))
    parser.add_argument("--starts", type=Path, help="JSON lines: instance_id, definition_name, correlation_id")
    parser.add_argument("--valkey", help="also judge this Valkey: redis://:password@host:port")
    parser.add_argument("--neo4j", help="also judge this Neo4j: bolt://user:password@host:port")
    parser.add_argument("--settle", type=float, default=0, help="seconds to wait for everything to end or wait visibly")
    parser.add_argument("--record", type=Path, help="also write the collected run to this file")
    return parser.parse_args(arguments)


def _collected(options: argparse.Namespace) -> Run:
    starts = load_starts(options.starts.read_text().splitlines()) if options.starts else []
    definitions = read_definitions(options.definitions)
    stores: dict[str, Callable[[], Awaitable[Sequence[StoredInstance]]]] = {}
    if options.valkey:
        stores["valkey"] = partial(collect_valkey, options.valkey)
    if options.neo4j:
        address = urlsplit(options.neo4j)
        uri = f"{address.scheme}://{address.hostname}:{address.port}"
        stores["neo4j"] = partial(collect_neo4j, uri, unquote(address.username or ""), unquote(address.password or ""))
    run = collect(options.nats, options.grpc, definitions, starts, settle_seconds=options.settle, stores=stores)
    return asyncio.run(run)


if __name__ == "__main__":
    sys.exit(main())
