"""Collects a run from outside: the stream over NATS, the instances over gRPC, the definitions from their folder."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
import nats
import nats.errors
from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as pb
from fleet.planning_ceremony.v1.planning_ceremony_pb2_grpc import PlanningCeremonyProcessorStub
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from tests.checker.recording import Instance, Message, Run, Start, StoredInstance

STREAM = "CEREMONY"
BATCH = 1000
PAGE = 1000
PATIENCE_SECONDS = 30.0
POLL_SECONDS = 0.5
# Takes subject, headers and body of a message. Raises AssertionError.
Check = Callable[[str, Mapping[str, str], bytes], None]
RESTING = frozenset({"COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT", "WAITING_FOR_HUMAN", "PAUSED"})


async def collect(
    nats_url: str,
    grpc_address: str,
    definitions: Mapping[str, str],
    starts: Sequence[Start],
    *,
    settle_seconds: float = 0,
    stores: Mapping[str, Callable[[], Awaitable[Sequence[StoredInstance]]]] | None = None,
    check: Check | None = None,
) -> Run:
    """The present run; waits up to `settle_seconds` until every ceremony has ended or waits for people.

    `stores` collects each read model, by its name; `check` is given each message.
    """
    instances = await settled_instances(grpc_address, starts, settle_seconds)
    messages = await collect_messages(nats_url, quiet_seconds=min(settle_seconds, 5.0), check=check)
    stored = {name: await collected() for name, collected in (stores or {}).items()}
    return Run(messages, definitions, starts, instances, stored)


def read_definitions(folder: Path) -> dict[str, str]:
    """The YAML text of every definition in a folder, by name."""
    return {path.stem: path.read_text() for path in sorted(folder.glob("*.yaml"))}


async def collect_messages(url: str, *, quiet_seconds: float = 0, check: Check | None = None) -> list[Message]:
    """Every message of the stream CEREMONY, each given to `check`; waits until none was added for `quiet_seconds`."""

    async def quiet(_: Exception) -> None: ...

    client = await nats.connect(url, error_cb=quiet)
    try:
        jetstream = client.jetstream(timeout=10)
        last = await _quiet_end(jetstream, quiet_seconds)
        config = ConsumerConfig(deliver_policy=DeliverPolicy.ALL, ack_policy=AckPolicy.NONE)
        subscription = await jetstream.pull_subscribe("", stream=STREAM, config=config)
        found: list[Message] = []
        whole: list[Msg] = []
        while not found or found[-1].sequence < last:
            if not last:
                break
            with contextlib.suppress(nats.errors.TimeoutError):
                for message in await subscription.fetch(BATCH, timeout=2):
                    whole.append(message)
                    sequence = message.metadata.sequence.stream
                    message_id = (message.headers or {}).get("Nats-Msg-Id", "")
                    found.append(Message(sequence, message.subject, message_id, _decoded(message.data)))
    finally:
        await client.close()
    if check is not None:  # only now: the server forgets a consumer that is silent for long
        for message in whole:
            check(message.subject, message.headers or {}, message.data)
    return found


async def _quiet_end(jetstream: JetStreamContext, quiet_seconds: float) -> int:
    """The last sequence of the stream, once it has not changed for so long."""
    last, since = -1, time.monotonic()
    while True:
        now = (await jetstream.stream_info(STREAM)).state.last_seq
        if now != last:
            last, since = now, time.monotonic()
        if time.monotonic() - since >= quiet_seconds:
            return last
        await asyncio.sleep(POLL_SECONDS)


def _decoded(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return None


async def settled_instances(address: str, starts: Sequence[Start], settle_seconds: float) -> list[Instance]:
    """All instances, once the accepted ones have ended or wait for people, or the time is up."""
    deadline = time.monotonic() + settle_seconds
    wanted = {start.instance_id for start in starts}
    async with grpc.aio.insecure_channel(address) as channel:
        stub = PlanningCeremonyProcessorStub(channel)
        while True:
            instances = await list_instances(stub)
            resting = {instance.instance_id for instance in instances if instance.status in RESTING}
            if wanted <= resting or time.monotonic() >= deadline:
                return instances
            await asyncio.sleep(POLL_SECONDS)


async def list_instances(stub: PlanningCeremonyProcessorStub) -> list[Instance]:
    """Every instance, page by page; a page may end before its limit."""
    found: dict[str, Instance] = {}
    offset = 0
    while True:
        request = pb.ListPlanningCeremonyInstancesRequest(limit=PAGE, offset=offset)
        answer = await _patiently(stub.ListPlanningCeremonyInstances, request)
        for ceremony in answer.ceremonies:
            found[ceremony.instance_id] = _instance(ceremony)
        offset += len(answer.ceremonies)
        if not answer.ceremonies or offset >= answer.total_count:
            return list(found.values())


async def _patiently(call: Any, request: pb.ListPlanningCeremonyInstancesRequest) -> Any:
    """Repeat while UNAVAILABLE: a restarted worker answers so until it serves its partitions."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return await call(request, timeout=10, wait_for_ready=True)
        except grpc.aio.AioRpcError as error:
            busy = error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
            if not busy or time.monotonic() >= deadline:
                raise
        await asyncio.sleep(POLL_SECONDS)


def _instance(ceremony: pb.PlanningCeremonyInstance) -> Instance:
    return Instance(
        instance_id=ceremony.instance_id,
        definition_name=ceremony.definition_name,
        current_state=ceremony.current_state,
        status=ceremony.status,
        correlation_id=ceremony.correlation_id,
        step_status=dict(ceremony.step_status),
        definition_hash=ceremony.definition_hash,
        version=ceremony.version,
        open_gates=[gate.step_id or gate.guard for gate in ceremony.open_gates],
        waiting_for=list(ceremony.waiting_for),
        step_outputs=dict(ceremony.step_outputs),
    )
