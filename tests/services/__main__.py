"""`python -m tests.services kafka` (or another) starts one service for people."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.services import KafkaServer, NatsServer, Neo4jServer, Server, ValkeyServer, running

SERVICES: dict[str, Callable[[Path, int | None], Server]] = {
    "kafka": KafkaServer,
    "nats": NatsServer,
    "valkey": ValkeyServer,
    "neo4j": Neo4jServer,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Start one service in the foreground, print its address, and end it at Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m tests.services", description=main.__doc__)
    parser.add_argument("service", choices=list(SERVICES))
    parser.add_argument("--folder", type=Path, help="keep the data here (default: a temporary folder)")
    parser.add_argument("--port", type=int, help="listen here (default: a free port)")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.ExitStack() as stack, contextlib.suppress(KeyboardInterrupt):
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ceremony-")))
        server = SERVICES[options.service](folder, options.port)
        begun = time.monotonic()
        stack.enter_context(running(server))
        print(
            f"{server.address} (ready in {time.monotonic() - begun:.1f} s, pid {server.pid}, log {server.log})",
            flush=True,
        )
        signal.pause()
    return 0


if __name__ == "__main__":
    sys.exit(main())
