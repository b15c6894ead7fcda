"""`python -m ceremony.dev.ray_simulation`: the simulated executor as its own process; SIGTERM or Ctrl-C ends it."""

from __future__ import annotations

import asyncio
import signal
from typing import Annotated

import typer

from bridge.clock import HostClock
from ceremony.dev.ray_simulation import Knobs, RaySimulation
from ceremony.errors import KnobError, SimulationError

DEFAULTS = Knobs()


async def serve(grpc_address: str, nats_url: str, knobs: Knobs) -> None:
    """Serve until a signal comes. Prints one line when ready."""
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    async with RaySimulation(grpc_address=grpc_address, nats_url=nats_url, clock=HostClock(), knobs=knobs) as ray:
        typer.echo(f"ray simulation ready: grpc {ray.url}, nats {nats_url}")
        await ended.wait()


def main(
    grpc: Annotated[str, typer.Option(help="Address to serve at, host:port; port 0 takes a free one.")],
    nats: Annotated[str, typer.Option(help="NATS server with JetStream.")],
    latency: Annotated[float, typer.Option(help="Mean seconds to an answer.")] = DEFAULTS.latency,
    jitter: Annotated[float, typer.Option(help="Seconds earlier or later.")] = DEFAULTS.jitter,
    failure_rate: Annotated[float, typer.Option(help="Share of answers that failed.")] = DEFAULTS.failure_rate,
    rejection_rate: Annotated[float, typer.Option(help="Share of tasks refused.")] = DEFAULTS.rejection_rate,
    duplicate_rate: Annotated[float, typer.Option(help="Share of answers sent twice.")] = DEFAULTS.duplicate_rate,
    reorder_rate: Annotated[float, typer.Option(help="Share of answers held back.")] = DEFAULTS.reorder_rate,
    silence_rate: Annotated[float, typer.Option(help="Share of answers never sent.")] = DEFAULTS.silence_rate,
    hang_rate: Annotated[float, typer.Option(help="Share of accepted calls that never return.")] = DEFAULTS.hang_rate,
    late_rate: Annotated[float, typer.Option(help="Share of answers that come late.")] = DEFAULTS.late_rate,
    late_seconds: Annotated[float, typer.Option(help="How much later those come.")] = DEFAULTS.late_seconds,
    oversize_rate: Annotated[float, typer.Option(help="Share of proposals too large.")] = DEFAULTS.oversize_rate,
    seed: Annotated[int, typer.Option(help="Another seed, other fates.")] = DEFAULTS.seed,
) -> None:
    """Run a simulated Ray executor."""
    try:
        knobs = Knobs(
            latency, jitter, failure_rate, rejection_rate, duplicate_rate, reorder_rate, silence_rate, seed,
            hang_rate, late_rate, late_seconds, oversize_rate,
        )  # fmt: skip
        asyncio.run(serve(grpc, nats, knobs))
    except (KnobError, SimulationError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2 if isinstance(error, KnobError) else 1) from None


if __name__ == "__main__":
    typer.run(main)
