"""Pulls the responses of agents from NATS and appends them to `commands`; acknowledges a message once it is durable.

A message that is delivered twice becomes the same command twice, and the fold ignores the second. So a crash between
append and acknowledgement does no harm.
"""

from __future__ import annotations

import asyncio

import nats.errors
import structlog
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig
from nats.js.errors import APIError, NotFoundError

from bridge.nats import metrics
from bridge.nats.connection import NatsConnection
from bridge.nats.headers import TRACEPARENT
from bridge.nats.pull import PullBroken, Puller
from bridge.nats.response_messages import SUBJECTS, Foreign, Malformed, stream_sequence, to_command
from bridge.nats.streams import AGENT_RESPONSES, no_answer, reason_of, stored_message, stream_exists
from bridge.nats.trouble import Trouble
from ports import provenance
from ports.clock import Clock
from ports.log import Log, LogFailed, LogUnavailable, RecordTooLarge
from ports.traces import parse_traceparent
from streams import topics
from streams.api import Unavailable
from streams.dead_letters import dead_letter_record
from streams.letter_budget import LetterBudget, Room
from tables.commands import AgentResult, encode_command

DURABLE = "planning-ceremony-processor-agent-response-completed-v1"
# JetStream delivers a message of a killed worker again after this time.
ACK_WAIT_SECONDS = 10.0
# Messages requested in advance.
CREDIT = 256
# Messages whose command is being appended.
IN_FLIGHT = 512
NAK_DELAY_SECONDS = 2.0
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.2, 5.0
STOP_SECONDS = 5.0

log = structlog.get_logger(__name__)


class AgentResponses:
    """One puller on the durable. Several workers may pull from it; each message goes to one of them."""

    def __init__(
        self,
        log: Log,
        connection: NatsConnection,
        clock: Clock,
        *,
        prefix: str,
        partitions: int,
        in_flight: int = IN_FLIGHT,
        letters: LetterBudget | None = None,
    ) -> None:
        """`prefix` is that of the topics, `partitions` the number of partitions of `commands`."""
        self._log = log
        self._connection = connection
        self._clock = clock
        self._prefix = prefix
        self._partitions = partitions
        self._letters = letters or LetterBudget(clock)
        self._slots = asyncio.Semaphore(in_flight)
        self._handling: set[asyncio.Task[None]] = set()
        self._loop: asyncio.Task[None] | None = None
        self._puller: Puller | None = None
        self._stopping = False
        self._state = "waiting for NATS"
        self._trouble = Trouble(clock, "answers")

    @property
    def state(self) -> str:
        """For readiness: `ok`, or a text with the trouble."""
        if not self._connection.is_connected:
            return self._connection.state
        return self._state if self._trouble.state == "ok" else self._trouble.state

    async def start(self) -> None:
        """Begin to pull; neither NATS nor the stream needs to exist yet."""
        self._loop = self._clock.spawn(self._run(), name="nats-in")

    async def stop(self) -> None:
        """Take no more messages, and finish the current ones."""
        self._stopping = True
        if self._puller is not None:
            self._puller.stop()
        try:
            async with self._clock.timeout(STOP_SECONDS if self._connection.is_connected else 0):
                if self._loop is not None:
                    await asyncio.wait([self._loop])
                if self._handling:
                    await asyncio.wait(self._handling)
        except TimeoutError:
            if self._handling:
                log.warning("agent_responses_left", count=len(self._handling))
        tasks = [task for task in (self._loop, *self._handling) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self) -> None:
        pause = FIRST_PAUSE_SECONDS
        while not self._stopping:
            try:
                if await self._ready():
                    pause = FIRST_PAUSE_SECONDS
                    await self._pull()
            except PullBroken as broken:
                self._set_state(broken.message)
            except APIError as error:
                self._set_state(f"stream {AGENT_RESPONSES}: {no_answer(error)}")
            except (nats.errors.Error, OSError, TimeoutError) as error:
                self._set_state(f"JetStream does not answer ({type(error).__name__})")
            if not self._stopping:
                await self._clock.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    async def waiting(self) -> int | None:
        """Return the messages that no worker has taken, or acknowledged, yet; None while NATS does not tell."""
        if not self._connection.is_connected:
            return None
        try:
            jetstream = await self._connection.jetstream()
            info = await jetstream.consumer_info(AGENT_RESPONSES, DURABLE)
        except (APIError, nats.errors.Error, OSError, TimeoutError):
            return None
        return (info.num_pending or 0) + (info.num_ack_pending or 0)

    async def _ready(self) -> bool:
        """Return whether the durable exists with the right settings; False while other services must make the stream.

        Makes a missing durable, and sets the four subjects if an older engine left it with another filter.
        """
        jetstream = await self._connection.jetstream()
        if not await stream_exists(jetstream, AGENT_RESPONSES):
            self._set_state(f"waiting for the stream {AGENT_RESPONSES}")
            return False
        try:
            info = await jetstream.consumer_info(AGENT_RESPONSES, DURABLE)
        except NotFoundError:
            return await self._make_durable(jetstream)
        found = info.config
        if wrong := problem_of(found):
            self._refused(wrong, (info.num_pending or 0) + (info.num_ack_pending or 0))
            return False
        if set(found.filter_subjects or [found.filter_subject or ""]) != set(SUBJECTS):
            wanted = found.evolve(filter_subject=None, filter_subjects=list(SUBJECTS))
            await jetstream.add_consumer(AGENT_RESPONSES, wanted)
            log.info("durable_changed", stream=AGENT_RESPONSES, durable=DURABLE)
        return True

    async def _make_durable(self, jetstream: JetStreamContext) -> bool:
        """Return False where the server refuses it: on a work queue no two consumers may read the same subject."""
        try:
            await jetstream.add_consumer(AGENT_RESPONSES, durable())
        except APIError as error:
            waiting = (await jetstream.stream_info(AGENT_RESPONSES)).state.messages
            self._refused(f"stream {AGENT_RESPONSES} refuses the durable {DURABLE}: {reason_of(error)}", waiting)
            return False
        log.info("durable_made", stream=AGENT_RESPONSES, durable=DURABLE)
        return True

    async def _pull(self) -> None:
        self._puller = Puller(
            self._connection,
            self._clock,
            stream=AGENT_RESPONSES,
            durable=DURABLE,
            credit=CREDIT,
            handle=self._spawn_handler,
        )
        if self._stopping:
            return
        self._set_state("ok")
        await self._puller.run()

    async def _spawn_handler(self, message: Msg) -> None:
        """Handle a message in its own task, so that many appends share the log's batches."""
        await self._slots.acquire()
        task = self._clock.spawn(self._handle(message), name="nats-in-message")
        self._handling.add(task)
        task.add_done_callback(self._handled)

    def _handled(self, task: asyncio.Task[None]) -> None:
        self._handling.discard(task)
        self._slots.release()
        if not task.cancelled() and (error := task.exception()) is not None:
            # The message is not acknowledged, so it is delivered again.
            log.error("agent_response_not_handled", error=type(error).__name__)

    async def _handle(self, message: Msg) -> None:
        sequence = stream_sequence(message.reply)
        verdict = to_command(message.subject, message.data, AGENT_RESPONSES, sequence)
        try:
            if isinstance(verdict, AgentResult):
                await self._append(verdict, (message.headers or {}).get(TRACEPARENT, ""))
                metrics.COMMANDS.inc()
            elif isinstance(verdict, Foreign):
                metrics.FOREIGN.labels(verdict.reason).inc()
            else:
                await self._refuse(message, sequence, verdict)
                return
            await message.ack()
        except RecordTooLarge:
            await self._refuse(message, sequence, Malformed("record_too_large", "its command is larger than a record"))
        except (LogUnavailable, LogFailed):
            metrics.POSTPONED.inc()
            await message.nak(delay=NAK_DELAY_SECONDS)
        except nats.errors.Error:
            # The acknowledgement was not sent: the message is delivered again and changes nothing.
            log.debug("agent_response_not_acknowledged", sequence=sequence)

    async def _append(self, command: AgentResult, traceparent: str) -> None:
        key = command.instance_id.encode()
        partition = self._log.partition_of(key, self._partitions)
        correlation = command.correlation_id.encode()
        headers = [(topics.CORRELATION_ID, correlation)] if correlation else []
        if (sent := parse_traceparent(traceparent)) is not None:
            headers.append((provenance.TRACEPARENT, sent.traceparent.encode()))
        value = encode_command(command)
        await self._log.append(topics.prefixed(self._prefix, topics.COMMANDS), partition, key, value, headers)

    async def read_message(self, sequence: int) -> bytes | None:
        """The message of the stream with this sequence; None if the stream no longer has it. Raises Unavailable."""
        if not self._connection.is_connected:
            raise Unavailable(f"NATS cannot be reached: {self._connection.state}")
        try:
            return await stored_message(await self._connection.jetstream(), AGENT_RESPONSES, sequence)
        except (nats.errors.Error, OSError, TimeoutError):
            raise Unavailable("JetStream does not answer") from None

    async def _refuse(self, message: Msg, sequence: int, malformed: Malformed) -> None:
        """Write a dead letter for operators, then let JetStream never deliver the message again."""
        metrics.MALFORMED.inc()
        log.warning("agent_response_malformed", sequence=sequence, code=malformed.code, reason=malformed.message)
        room = self._letters.take(malformed.code, len(message.data))
        if room is Room.NONE:
            await message.term()
            return
        key, value, headers = dead_letter_record(
            AGENT_RESPONSES,
            0,
            sequence,
            malformed.code,
            malformed.message,
            key=None,
            value=message.data,
            headers=[(topics.SUBJECT, message.subject.encode())],
            refer=room is Room.REFERENCE,
        )
        await self._log.append(topics.prefixed(self._prefix, topics.DEADLETTERS), 0, key, value, headers)
        await message.term()

    def _refused(self, reason: str, waiting: int) -> None:
        self._trouble.note(DURABLE, reason, waiting)

    def _set_state(self, state: str) -> None:
        self._trouble.end(DURABLE)
        if state != self._state:
            log.info("agent_responses", state=state)
        self._state = state


def problem_of(found: ConsumerConfig) -> str:
    """The setting of an existing durable with which answers would be lost or unreadable; empty for a sound one."""
    name = f"the durable {DURABLE} of stream {AGENT_RESPONSES}"
    if found.deliver_subject or found.ack_policy != AckPolicy.EXPLICIT:
        return f"{name} pushes or needs no acknowledgement, which cannot be changed: delete it"
    if found.max_deliver is not None and found.max_deliver > 0:
        return f"{name} gives an answer up after {found.max_deliver} deliveries (max_deliver): set -1, or delete it"
    if found.headers_only:
        return f"{name} delivers answers without their content (headers_only): set it to false, or delete it"
    return ""


def durable() -> ConsumerConfig:
    """The configuration of a new durable (specification 17.1)."""
    return ConsumerConfig(
        durable_name=DURABLE,
        description="Responses of agents for the ceremony engine",
        filter_subjects=list(SUBJECTS),
        ack_policy=AckPolicy.EXPLICIT,
        ack_wait=ACK_WAIT_SECONDS,
        max_ack_pending=4 * IN_FLIGHT,
    )
