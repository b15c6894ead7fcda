"""JetStream in memory, behind the interface of nats-py's client: streams, deduplication, acknowledgements, a durable.

Only nats-py's `Client` is replaced: connection, publisher, puller, JetStream's context and messages are real.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

from nats.aio.msg import Msg
from nats.js import JetStreamContext

from bridge.nats.client import AnswerHandler, Message
from bridge.nats.headers import read_lines
from tests.crash.world import Host, World

WIRE_SECONDS = 0.05
# A client that answers no ping for this long is disconnected; a server may be configured to wait longer.
STALE_SECONDS = 240.0
RECONNECT_SECONDS = 1.0
API = "$JS.API."
MESSAGE_ID = "Nats-Msg-Id"
NANOSECONDS = 10**9


class Stored(NamedTuple):
    """One message of a stream; sequences begin at 1."""

    sequence: int
    subject: str
    message_id: str
    data: bytes
    at: int
    """Milliseconds since the epoch."""
    headers: tuple[tuple[str, str], ...] = ()


@dataclass
class Stream:
    config: dict[str, Any]
    messages: list[Stored] = field(default_factory=list)
    known: dict[str, tuple[int, float]] = field(default_factory=dict)
    """Sequence and time of each message id, for the duplicate window."""

    def takes(self, subject: str) -> bool:
        return any(_matches(pattern, subject) for pattern in self.config["subjects"])


@dataclass
class Asked:
    """A pull request that is not used up."""

    client: Client
    inbox: str
    left: int
    until: float


@dataclass
class Durable:
    stream: Stream
    config: dict[str, Any]
    next: int = 1
    again: list[int] = field(default_factory=list)
    pending: dict[int, int] = field(default_factory=dict)
    """Deliveries of each unacknowledged message, by its sequence."""
    delivered: dict[int, int] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)

    @property
    def settled(self) -> bool:
        return not self.pending and not self.again and self.next > len(self.stream.messages)


class Server:
    """The server, which outlives the processes."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.stale_seconds = STALE_SECONDS
        self.streams: dict[str, Stream] = {}
        self.durables: dict[tuple[str, str], Durable] = {}
        self.clients: list[Client] = []
        self.published: list[tuple[str, str]] = []
        """(message id, subject) of every message that arrived, including duplicates."""
        self.deliveries = 0
        """Deliveries of messages to pull requests."""

    # ---- publishing

    def receive(self, client: Client | None, subject: str, data: bytes, reply: str, headers: Mapping[str, str]) -> None:
        """Take a message that arrives."""
        if subject.startswith("$JS.ACK."):
            self._acknowledged(subject, data)
        elif subject.startswith(f"{API}CONSUMER.MSG.NEXT."):
            self._next(client, subject, data, reply)
        elif subject.startswith(API):
            self._answer(client, reply, self._api(subject[len(API) :], data))
        else:
            self._answer(client, reply, self.store(subject, data, headers))

    def store(self, subject: str, data: bytes, headers: Mapping[str, str]) -> dict[str, Any] | None:
        """Store it once within the duplicate window; return JetStream's answer, or None without a stream for it."""
        for name, stream in self.streams.items():
            if not stream.takes(subject):
                continue
            message_id = headers.get(MESSAGE_ID, "")
            self.published.append((message_id, subject))
            if message_id and (sequence := self._duplicate(stream, message_id)):
                return {"stream": name, "seq": sequence, "duplicate": True}
            at = self.world.time()
            stored = Stored(len(stream.messages) + 1, subject, message_id, data, at, tuple(headers.items()))
            stream.messages.append(stored)
            if message_id:
                stream.known[message_id] = (stored.sequence, self.world.now)
            for durable in self.durables.values():
                self._pump(durable)
            return {"stream": name, "seq": stored.sequence}
        return None

    def _duplicate(self, stream: Stream, message_id: str) -> int:
        sequence, at = stream.known.get(message_id, (0, 0.0))
        window = stream.config["duplicate_window"] / NANOSECONDS
        return sequence if sequence and self.world.now - at < window else 0

    def _answer(self, client: Client | None, reply: str, answer: dict[str, Any] | None) -> None:
        if client is None or not reply:
            return
        if answer is None:
            client.deliver(reply, reply, b"", "", {"Status": "503"})
        else:
            client.deliver(reply, reply, json.dumps(answer).encode(), "", {})

    def ids_since(self, name: str, since: datetime) -> set[str]:
        """The ids of the messages stored since a time, as a read of the stream finds them."""
        return {message.message_id for message in self.streams[name].messages if message.at >= since.timestamp() * 1000}

    # ---- JetStream's interface

    def _api(self, what: str, data: bytes) -> dict[str, Any] | None:
        request = json.loads(data) if data else {}
        match what.split("."):
            case ["STREAM", "INFO", name]:
                return self._info(name)
            case ["STREAM", "CREATE", name]:
                self.streams.setdefault(name, Stream({"duplicate_window": 120 * NANOSECONDS, **request}))
                return self._info(name)
            case ["CONSUMER", "INFO", stream, name] if (stream, name) in self.durables:
                return _consumer(stream, name, self.durables[stream, name])
            case ["CONSUMER", "INFO", *_]:
                return {"error": {"code": 404, "err_code": 10014, "description": "consumer not found"}}
            case ["CONSUMER", "DURABLE", "CREATE", stream, name]:
                self.durables.setdefault((stream, name), Durable(self.streams[stream], request["config"]))
                return _consumer(stream, name, self.durables[stream, name])
        raise AssertionError(f"this JetStream does not know {what}")

    def _info(self, name: str) -> dict[str, Any]:
        stream = self.streams.get(name)
        if stream is None:
            return {"error": {"code": 404, "err_code": 10059, "description": "stream not found"}}
        last = len(stream.messages)
        state = {"messages": last, "bytes": 0, "first_seq": 1, "last_seq": last, "consumer_count": 0}
        now = datetime.fromtimestamp(self.world.time() / 1000, UTC).isoformat()
        return {"config": dict(stream.config), "state": state, "created": now, "ts": now}

    # ---- the pull durable

    def _next(self, client: Client | None, subject: str, data: bytes, reply: str) -> None:
        stream, name = subject.removeprefix(f"{API}CONSUMER.MSG.NEXT.").split(".", 1)
        durable = self.durables.get((stream, name))
        if client is None or durable is None:
            self._answer(client, reply, None)
            return
        request = json.loads(data)
        expires = request["expires"] / NANOSECONDS
        asked = Asked(client, reply, request["batch"], self.world.now + expires)
        durable.asked.append(asked)
        self.world.after(expires, lambda: self._expired(durable, asked))
        self._pump(durable)

    def _expired(self, durable: Durable, asked: Asked) -> None:
        if asked not in durable.asked:
            return
        durable.asked.remove(asked)
        headers = {"Status": "408", "Description": "Request Timeout", "Nats-Pending-Messages": str(asked.left)}
        asked.client.deliver(asked.inbox, asked.inbox, b"", "", headers)

    def _pump(self, durable: Durable) -> None:
        durable.asked = [asked for asked in durable.asked if asked.client.connected and asked.left]
        while durable.asked and (durable.again or durable.next <= len(durable.stream.messages)):
            sequence = durable.again.pop(0) if durable.again else durable.next
            durable.next = max(durable.next, sequence + 1)
            message = durable.stream.messages[sequence - 1]
            if any(_matches(pattern, message.subject) for pattern in durable.config["filter_subjects"]):
                self._hand_over(durable, durable.asked[0], message)
            durable.asked = [asked for asked in durable.asked if asked.left]

    def _hand_over(self, durable: Durable, asked: Asked, message: Stored) -> None:
        self.deliveries += 1
        times = durable.delivered[message.sequence] = durable.delivered.get(message.sequence, 0) + 1
        durable.pending[message.sequence] = times
        asked.left -= 1
        name, stream = durable.config["durable_name"], durable.stream.config["name"]
        reply = f"$JS.ACK.{stream}.{name}.{times}.{message.sequence}.{message.sequence}.0.0"
        asked.client.deliver(asked.inbox, message.subject, message.data, reply, {})
        wait = durable.config["ack_wait"] / NANOSECONDS
        self.world.after(wait, lambda: self._not_acknowledged(durable, message.sequence, times))

    def _not_acknowledged(self, durable: Durable, sequence: int, times: int) -> None:
        if durable.pending.get(sequence) == times:
            del durable.pending[sequence]
            durable.again.append(sequence)
            self._pump(durable)

    def _acknowledged(self, subject: str, data: bytes) -> None:
        _, _, stream, name, times, sequence, *_ = subject.split(".")
        durable = self.durables[stream, name]
        if data.startswith(b"-NAK"):
            delay = json.loads(data[4:] or b"{}").get("delay", 0) / NANOSECONDS
            self.world.after(delay, lambda: self._not_acknowledged(durable, int(sequence), int(times)))
        else:
            durable.pending.pop(int(sequence), None)
            if int(sequence) in durable.again:
                durable.again.remove(int(sequence))


def _consumer(stream: str, name: str, durable: Durable) -> dict[str, Any]:
    created = datetime.fromtimestamp(0, UTC).isoformat()
    return {"stream_name": stream, "name": name, "config": dict(durable.config), "created": created}


def _matches(pattern: str, subject: str) -> bool:
    ours, theirs = pattern.split("."), subject.split(".")
    if ours[-1] == ">":
        return len(theirs) >= len(ours) and all(a in ("*", b) for a, b in zip(ours[:-1], theirs, strict=False))
    return len(ours) == len(theirs) and all(a in ("*", b) for a, b in zip(ours, theirs, strict=True))


class Subscription:
    """A subscription like nats-py's: a task passes each message to the callback, one after another."""

    def __init__(self, client: Client, subject: str, handle: Callable[[Msg], Awaitable[None]]) -> None:
        self.subject = subject
        self._client = client
        self._handle = handle
        self.queue: asyncio.Queue[Msg] = asyncio.Queue()
        self.task = asyncio.create_task(self._run(), name=f"subscription {subject}")

    async def _run(self) -> None:
        while True:
            await self._handle(await self.queue.get())
            self.queue.task_done()

    async def drain(self) -> None:
        self._client.subscriptions.remove(self)
        await self.queue.join()
        self.task.cancel()


class Version(NamedTuple):
    major: int = 2
    minor: int = 12


class Client:
    """The part of nats-py's Client that the bridges use, on the connection of one process."""

    max_payload = 1024 * 1024
    connected_server_version = Version()

    def __init__(self, server: Server, host: Host) -> None:
        self._server = server
        self._host = host
        self._number = len(server.clients)
        self._inboxes = 0
        server.clients.append(self)
        self.connected = False
        self.is_closed = False
        self.subscriptions: list[Subscription] = []
        self._wire = 0
        """Number of the connection. Messages under way on an earlier one do not arrive."""
        self._options: dict[str, Any] = {}
        host.on_death.append(self._cut)
        host.on_thaw.append(self._thawed)

    def _cut(self) -> None:
        self.connected = False
        self._wire += 1

    def _thawed(self, seconds: float) -> None:
        if self.connected and seconds > self._server.stale_seconds:
            self._cut()
            self._host.loop.create_task(self._reconnect(), name="nats reconnects")

    async def _reconnect(self) -> None:
        await self._options["disconnected_cb"]()
        await asyncio.sleep(RECONNECT_SECONDS)
        self.connected = True
        await self._options["reconnected_cb"]()

    async def connect(self, **options: Any) -> None:
        self._options = options
        await self._host.call(WIRE_SECONDS, lambda: None)
        self.connected = True

    async def close(self) -> None:
        self.connected, self.is_closed = False, True
        for subscription in self.subscriptions:
            subscription.task.cancel()

    def jetstream(self, **options: Any) -> JetStreamContext:
        return JetStreamContext(self, **options)  # type: ignore[arg-type]

    def new_inbox(self) -> str:
        self._inboxes += 1
        return f"_INBOX.{self._number}.{self._inboxes}"

    async def subscribe(self, subject: str, cb: Callable[[Msg], Awaitable[None]], **limits: Any) -> Subscription:
        subscription = Subscription(self, subject, cb)
        self.subscriptions.append(subscription)
        return subscription

    async def publish(
        self, subject: str, payload: bytes = b"", reply: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        if not self.connected:
            return
        wire = self._wire

        def arrive() -> None:
            if wire == self._wire:
                self._server.receive(self, subject, payload, reply, headers or {})

        self._host.after(self._host.world.latency(WIRE_SECONDS), arrive, lane=self, written=True)

    async def publish_many(self, inbox: str, tokens: Iterable[int], messages: Iterable[Message]) -> None:
        for token, message in zip(tokens, messages, strict=True):
            headers = {MESSAGE_ID: message.id, **read_lines(message.beside)} if message.id else {}
            await self.publish(message.subject, message.data, f"{inbox}.{token}", headers)

    def handle_answers(self, inbox: str, handler: AnswerHandler) -> None:
        """Pass each response to the subscription, as the real client does."""

    async def request(self, subject: str, payload: bytes = b"", timeout: float = 5.0) -> Msg:  # noqa: ASYNC109
        inbox = self.new_inbox()
        answered = self._host.future()

        async def answer(message: Msg) -> None:
            if not answered.done():
                answered.set_result(message)

        subscription = await self.subscribe(inbox, answer)
        try:
            async with asyncio.timeout(timeout):
                await self.publish(subject, payload, reply=inbox)
                message: Msg = await answered
                return message
        finally:
            self.subscriptions.remove(subscription)
            subscription.task.cancel()

    async def ids_since(self, name: str, since: datetime) -> set[str]:
        """Read a stream back. nats-py's own pull subscriptions need the internals of its own client."""
        return await self._host.call(WIRE_SECONDS, lambda: self._server.ids_since(name, since))

    def deliver(self, inbox: str, subject: str, data: bytes, reply: str, headers: dict[str, str]) -> None:
        """Take a message of the server for an inbox of this client."""
        wire = self._wire

        def arrive() -> None:
            if wire != self._wire:
                return
            for subscription in self.subscriptions:
                if _matches(subscription.subject, inbox):
                    subscription.queue.put_nowait(Msg(self, subject, reply, data, headers or None))  # type: ignore[arg-type]

        self._host.after(self._host.world.latency(WIRE_SECONDS), arrive, lane=(self, "in"))
