"""A worker to be killed: `python -m tests.transport.conformance.worker MODE URL PREFIX [WORKER_ID]`.

Modes: `count` folds `in` into the table `counts` and sends one effect per record, slowly enough to be killed on the
way; `hold` keeps requests with the value `stick` and answers all others; `answer` answers all; `stuck` never finishes
its first batch and prints its memory. Prints `ready 1`, then one line per batch. Exits with 3 when the log failed or
fenced it.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterable
from pathlib import Path

from ports.log import AgentSpec, Batch, Held
from streams.transport.app import CeremonyApp
from tests.transport.conformance.harness import COUNTS, Place

# Seconds per batch of `count`.
PAUSE = 0.01
BATCH = 40


def say(word: str, number: int) -> None:
    print(word, number, flush=True)


def counting(place: Place) -> tuple[AgentSpec, object]:
    """The effect's id is `<key>/<count>`, so it depends on the rows, as the engine's do."""
    out = place.topic("out")

    async def count(stream: AsyncIterable[Batch]) -> None:
        folded = 0
        async for batch in stream:
            for record in batch:
                assert record.key is not None
                row = (batch.get("counts", record.key) or 0) + 1
                batch.put("counts", record.key, row)
                effect = b"%s/%d" % (record.key, row)
                batch.send(out, record.key, effect + b" " + (record.value or b""), [("effect-id", effect)])
            folded += len(batch)
            say("folded", folded)
            await asyncio.sleep(PAUSE)

    return AgentSpec("count", place.topic("in"), tables=[COUNTS], batch=BATCH), count


def answering(place: Place, *, all_of_them: bool) -> tuple[AgentSpec, object]:
    """Answers from tasks, as step agents do."""
    out = place.topic("out")
    tasks: set[asyncio.Task[None]] = set()
    answered: list[bytes] = []

    async def answer(held: Held) -> None:
        await asyncio.sleep(0.01)
        value = held.record.value or b""
        held.send(out, held.record.key or b"", value)
        held.release()
        answered.append(value)
        say("answered", len(answered))
        say("stuck", answered.count(b"stick"))

    async def agent(stream: AsyncIterable[Batch]) -> None:
        async for batch in stream:
            for record in batch:
                held = batch.hold(record)
                if all_of_them or record.value != b"stick":
                    task = asyncio.create_task(answer(held))
                    tasks.add(task)

    return AgentSpec("answer", place.topic("requests"), batch=BATCH), agent


def stuck(place: Place) -> tuple[AgentSpec, object]:
    async def agent(stream: AsyncIterable[Batch]) -> None:
        async for batch in stream:
            say("got", len(batch))
            while True:
                say("kilobytes", resident_kilobytes())
                await asyncio.sleep(0.1)

    return AgentSpec("stuck", place.topic("in"), batch=5), agent


def resident_kilobytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4


def agents(mode: str, place: Place) -> tuple[AgentSpec, object]:
    if mode == "count":
        return counting(place)
    if mode == "stuck":
        return stuck(place)
    return answering(place, all_of_them=mode == "answer")


async def say_positions(app: CeremonyApp) -> None:
    while True:
        await asyncio.sleep(0.05)
        if app.settled:
            say("position", sum(part.position for part in app.parts))


async def run(mode: str, place: Place, worker_id: str | None) -> int:
    app: CeremonyApp = place.app(worker_id=worker_id)
    spec, function = agents(mode, place)
    app.attach(spec, function)  # type: ignore[arg-type]
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, ended.set)
    app.on_crash = lambda _: ended.set()
    say("kilobytes", resident_kilobytes())
    await app.start()
    say("ready", 1)
    positions = asyncio.create_task(say_positions(app))
    await ended.wait()
    positions.cancel()
    await app.stop()
    if app.failure is not None:
        print(repr(app.failure), file=sys.stderr, flush=True)
        return 3
    return 0


if __name__ == "__main__":
    arguments = [*sys.argv[1:], None]
    mode, url, prefix, worker_id = arguments[:4]
    assert mode is not None
    assert url is not None
    assert prefix is not None
    sys.exit(asyncio.run(run(mode, Place(url, Path(), prefix), worker_id)))
