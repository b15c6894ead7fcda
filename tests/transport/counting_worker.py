"""A worker in a process of its own that counts records by key, for fault tests to kill, stop and freeze.

`python -m tests.transport.counting_worker URL PREFIX PARTITIONS` prints `ready` once its partitions are served. Each
record of `<prefix>.commands` is answered on `<prefix>.answers` with the new count of its key; a second agent forwards
each answer to `<prefix>.echoes`, so that agents without tables also resume. Exits with 0 after SIGTERM, with 3 when
the log failed.
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import sys
from collections.abc import AsyncIterable

from bridge.clock import HostClock
from ports.log import AgentSpec, Batch, TableSpec, TopicSpec
from streams.transport.app import CeremonyApp, create_app

COUNTS = TableSpec("counts", lambda row: json.dumps(row).encode(), json.loads)


def counting_app(url: str, prefix: str, partitions: int, pause: float = 0.0) -> CeremonyApp:
    """Return the worker's app; the counter sleeps `pause` seconds in each batch."""
    topics = [f"{prefix}.{name}" for name in ("commands", "answers", "echoes", "deadletters")]
    app = create_app(
        prefix,
        url,
        clock=HostClock(),
        partitions=partitions,
        topics=[TopicSpec(topic, partitions) for topic in topics],
        prefix=prefix,
    )

    async def counter(stream: AsyncIterable[Batch]) -> None:
        async for batch in stream:
            for record in batch:
                key = record.key or b""
                count = (batch.get("counts", key) or 0) + 1
                batch.put("counts", key, count)
                batch.send(topics[1], key, b"%d" % count)
            await asyncio.sleep(pause)

    async def echo(stream: AsyncIterable[Batch]) -> None:
        async for batch in stream:
            for held in [batch.hold(record) for record in batch]:
                held.send(topics[2], held.record.key or b"", held.record.value or b"")
                held.release()

    app.attach(AgentSpec("counter", topics[0], tables=[COUNTS], batch=50), counter)
    app.attach(AgentSpec("echo", topics[1], batch=50), echo)
    return app


async def serve(url: str, prefix: str, partitions: int) -> int:
    app = counting_app(url, prefix, partitions, pause=0.01)
    ended = asyncio.Event()
    app.on_crash = lambda _: ended.set()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    await app.start()
    while not (app.settled and app.owner.assigned) and not ended.is_set():
        await asyncio.sleep(0.01)
    print("ready", flush=True)
    await ended.wait()
    await app.stop()
    return 0 if app.failure is None else 3


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    sys.exit(asyncio.run(serve(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
