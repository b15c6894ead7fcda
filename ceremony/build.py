"""All parts of a worker and their dependencies, on one page; `ceremony/worker.py` starts and stops them.

Ports (clock, log, Ray executor, NATS)
  └─► Pipeline: engine ◄─► timers, agents of ceremonies and steps, bridges from and to NATS
        └─► Parts: the Faust app that feeds the agents, readiness, dead letters, worker directory ─► gRPC, HTTP

A pipeline is built from its ports alone, so the crash tests run the same one on neighbours in memory.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from prometheus_client import disable_created_metrics

from bridge.clock import new_id
from bridge.dead_letters import DeadLetters
from bridge.definitions import DefinitionFolder
from bridge.grpc.server import MOST_CONNECTIONS, GrpcServer, Sharing
from bridge.grpc.servicer import Servicer
from bridge.http.server import HttpServer
from bridge.nats.connection import NatsConnection
from bridge.nats.events import EventsBridge
from bridge.nats.outbound import NatsOutbound
from bridge.nats.responses import AgentResponses
from bridge.projection.outage import STORE_WAITS
from bridge.ray.executor import RayExecutorClient
from bridge.ray.timing import TimedRayExecutor
from ceremony import descriptors, logs, neighbour_metrics
from ceremony.lags import Lags
from ceremony.log_lines import LogLines
from ceremony.neighbours import Neighbours
from ceremony.read_models import history_copy, projectors
from ceremony.readiness import Readiness
from ceremony.settings import PROJECTOR, Settings
from ceremony.valkey import valkey_address
from ceremony.version import VERSION
from ports.clock import Clock
from ports.history import HistoryCopy
from ports.idempotency import IdempotencyStore
from ports.lines import LineSink
from ports.log import AgentSpec, Log
from ports.outbound import Outbound
from ports.ray import RayExecutor
from ports.redaction import Redactor
from ports.spans import SpanSink
from steps.agent import BACKSTOP_SECONDS, AgentFunction, AgentPorts, Model
from steps.publish import subject_problems
from steps.reading import Wiring
from steps.registry import all_kinds, step_agents
from steps.secrets.redactor import TextRedactor
from streams.ceremony_agent import CeremonyAgent
from streams.engine import Engine
from streams.idempotency import IdempotentOutbound
from streams.journal import Journal
from streams.log_clock import LogClock
from streams.metrics import Metrics, process_metrics
from streams.outages import CALLS_SETTLE_SECONDS, NeighbourOutage
from streams.screening import ScreenedOutbound
from streams.spans import FoldedSpans
from streams.timers import Timers
from streams.topics import COMMANDS, CORRELATION_ID, prefixed
from streams.topology import CEREMONY, PartitionListener, agents, topics
from streams.tracing import Tracing
from streams.transport.app import CeremonyApp, create_app
from streams.transport.partition.row_cache import RowCache
from streams.transport.partition.row_store import MemoryStores, Stores
from streams.waits import TIMER
from streams.worker_directory import WorkerDirectory
from tables.definition import Definition
from tables.errors import Problem
from tables.kinds import Kinds

if TYPE_CHECKING:
    from bridge.otel.exporter import OtelSpans
    from bridge.valkey.idempotency import ValkeyIdempotency

# Addresses to listen at that nobody can connect to.
EVERY_INTERFACE = frozenset({"0.0.0.0", "[::]", "::", "*", ""})  # noqa: S104
MIB = 1024 * 1024
RAY_WAITS = "steps that ask agents: each is asked again until its timeout"
# By role.
VALKEY_WAITS = {
    PROJECTOR: STORE_WAITS,
    "engine": "publish steps go on by the marks in their ceremonies alone",
}


@dataclass(frozen=True, slots=True)
class Ports:
    """The outside world of a pipeline."""

    clock: Clock
    log: Log
    ray: RayExecutor
    nats: NatsConnection
    idempotency: IdempotencyStore | None = None
    """Remembers acknowledged messages of publish steps beside the rows, where one is configured."""
    history_copy: HistoryCopy | None = None
    """Has events that the log has no more, where one is configured."""
    redactor: Redactor = field(default_factory=TextRedactor)
    """Of every exit."""
    lines: LineSink | None = None
    """Takes the journal of the fold; without it there is none."""
    spans: SpanSink | None = None
    """Takes the spans of traces; without it there are none."""


@dataclass(frozen=True, slots=True)
class Membership:
    """The partitions assigned to this worker, as callables: the assignment is built after the engine that reads it."""

    unserved: Callable[[], Mapping[int, tuple[str, str]]]
    """Assigned partitions that are not served, each with a code and a remedy."""
    held: Callable[[], Collection[int] | None]
    """All assigned partitions; None while the group rebalances."""
    fresh: Callable[[], bool]
    """False once another worker may own them."""


@dataclass(frozen=True, slots=True)
class PipelineOptions:
    prefix: str
    """Of the topics."""
    partitions: int
    """Of each topic."""
    model: Model
    publish_subjects: Sequence[str]
    """Patterns of the subjects that publish steps may use."""
    agent_concurrency: int
    """Calls in flight of each step kind."""
    ray_call_timeout_seconds: float
    nats_in_flight: int
    """Events of a partition published and not acknowledged yet."""
    take_over_grace_seconds: float
    max_lag: int
    """Records of a partition that may wait to be folded before starts are refused; 0 sets no limit."""
    accepts_newer_fold: bool = False
    """Take partitions that a newer release has owned, for going back."""

    @classmethod
    def of(cls, settings: Settings) -> PipelineOptions:
        return cls(
            prefix=settings.topic_prefix,
            partitions=settings.partitions,
            model=Model(settings.vllm_url, settings.vllm_model),
            publish_subjects=settings.publish_subjects,
            agent_concurrency=settings.agent_concurrency,
            ray_call_timeout_seconds=settings.ray_call_timeout_seconds,
            nats_in_flight=settings.nats_in_flight,
            take_over_grace_seconds=settings.take_over_grace_seconds,
            max_lag=settings.max_lag,
            accepts_newer_fold=settings.accepts_newer_fold,
        )


class Pipeline:
    """The parts that work on ceremonies. A driver has to feed `agents` from their topics."""

    def __init__(
        self, ports: Ports, options: PipelineOptions, membership: Membership, kinds: Kinds, metrics: Metrics
    ) -> None:
        clock, log, prefix, partitions = ports.clock, ports.log, options.prefix, options.partitions
        self.log_clock = LogClock(clock)
        tracing = Tracing() if ports.spans is None else Tracing(ports.spans.sampled)
        self.engine = Engine(
            log=log,
            unserved=membership.unserved,
            held=membership.held,
            fresh=membership.fresh,
            clock=clock,
            log_clock=self.log_clock,
            kinds=kinds,
            prefix=prefix,
            partitions=partitions,
            metrics=metrics,
            max_lag=options.max_lag,
            redactor=ports.redactor,
            journal=None if ports.lines is None else Journal(ports.lines, clock),
            history_copy=ports.history_copy,
            spans=None if ports.spans is None else FoldedSpans(ports.spans, tracing, self.log_clock),
        )
        self.timers = Timers(
            clock, self.log_clock, self.engine.commands.send, grace_seconds=options.take_over_grace_seconds
        )
        self.engine.timers = self.timers
        metrics.oldest_wait.labels(TIMER).set_function(self.timers.late_seconds)
        self.sender = NatsOutbound(ports.nats, clock)
        self.outbound = ScreenedOutbound(self.sender, ports.redactor, self.engine.reads.prompts_of)
        self.agents: Sequence[tuple[AgentSpec, AgentFunction]] = agents(
            prefix,
            CeremonyAgent(
                kinds, prefix, self.log_clock, self.engine.commands.replies.expected, ports.redactor, tracing
            ),
            _listener(self.engine, metrics),
            step_agents(_agent_ports(ports, options, self.log_clock, self._once(ports, metrics))),
            accepts_newer_fold=options.accepts_newer_fold,
        )
        letters = self.engine.reads.letter_budget
        self.nats_out = EventsBridge(
            log,
            ports.nats,
            clock,
            prefix=prefix,
            redactor=ports.redactor,
            window=options.nats_in_flight,
            letters=letters,
            partitions=partitions,
        )
        self.nats_in = AgentResponses(log, ports.nats, clock, prefix=prefix, partitions=partitions, letters=letters)

    def _once(self, ports: Ports, metrics: Metrics) -> Outbound:
        """Return the one way out for the messages of publish steps."""
        return IdempotentOutbound(self.outbound, ports.clock, self.engine.partitions, metrics, ports.idempotency)


def _listener(engine: Engine, metrics: Metrics) -> PartitionListener:
    return PartitionListener(
        engine.taken, engine.applied, engine.lost, metrics.recovered, metrics.saved, engine.substituted
    )


def _agent_ports(ports: Ports, options: PipelineOptions, log_clock: LogClock, outbound: Outbound) -> AgentPorts:
    return AgentPorts(
        Wiring(prefixed(options.prefix, COMMANDS), CORRELATION_ID, log_clock.now),
        ports.clock,
        ports.ray,
        outbound,
        options.model,
        publish_subjects=tuple(options.publish_subjects),
        concurrency=options.agent_concurrency,
        # The executor's own deadline ends a call; this longer one is a backstop.
        ray_call_seconds=options.ray_call_timeout_seconds + BACKSTOP_SECONDS,
        spans=ports.spans,
    )


class Parts:
    """All parts of a worker process, on real neighbours."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a series beside each counter that nobody reads
        self.metrics = process_metrics()
        self.metrics.build.labels(VERSION).set(1)
        kinds = all_kinds()
        rules = [partial(_subject_rule, settings.publish_subjects)]
        redactor = TextRedactor()
        logs.redact_with(redactor)
        self.definitions = DefinitionFolder(settings.ceremonies_dir, kinds, clock, rules, learn=redactor.learn)
        self.nats = NatsConnection(settings.nats_url, clock, stream_replicas=settings.stream_replicas)
        ray_outage = NeighbourOutage("ray_executor", clock, RAY_WAITS, settle_seconds=CALLS_SETTLE_SECONDS)
        valkey_outage = _valkey_outage(settings, clock)
        self.outages = [one for one in (self.nats.outage, ray_outage, valkey_outage) if one is not None]
        """Those that nobody hears of while no call is made."""
        self.ray = RayExecutorClient(
            settings.ray_executor_url, call_timeout_seconds=settings.ray_call_timeout_seconds, outage=ray_outage
        )
        self.app = _app(settings, clock)
        self.log = self.app.driver.log
        self.idempotency = _idempotency(settings, clock, valkey_outage)
        self.history_copy = history_copy(settings)
        self.projectors = projectors(settings, self.log, kinds, redactor, clock, valkey_outage)
        self.spans = span_exporter(settings, redactor, clock)
        self.pipeline = Pipeline(
            Ports(
                clock,
                self.log,
                TimedRayExecutor(self.ray, clock),
                self.nats,
                self.idempotency,
                self.history_copy,
                redactor,
                LogLines(redactor, clock),
                self.spans,
            ),
            PipelineOptions.of(settings),
            _membership(self.app),
            kinds,
            self.metrics,
        )
        self.app.letter_budget = self.pipeline.engine.reads.letter_budget
        for spec, function in self.pipeline.agents:
            self.app.attach(spec, function)
        partitions = self.pipeline.engine.partitions
        neighbours = Neighbours(
            settings,
            clock,
            log=self.log,
            partitions=partitions,
            nats=self.nats,
            bridges=[self.pipeline.nats_out, self.pipeline.nats_in],
            outbound=self.pipeline.sender,
            ray=self.ray,
            projectors=self.projectors,
            idempotency=self.idempotency,
        )
        self.readiness = Readiness(neighbours.all(), settings.required, clock, warnings=neighbours.warnings)
        neighbour_metrics.show(self.readiness.states)
        self.lags = Lags(
            self.log,
            clock,
            self.metrics,
            prefix=settings.topic_prefix,
            parts=lambda: self.app.parts,
            events=self.pipeline.nats_out,
            responses=self.pipeline.nats_in if "bridge" in settings.roles else None,
        )
        self.dead_letters = DeadLetters(
            self.log,
            clock,
            prefix=settings.topic_prefix,
            partitions=settings.partitions,
            read_message=self.pipeline.nats_in.read_message,
            index=self.pipeline.engine.reads.letters,
        )
        self.directory = _directory(settings, clock, self.app, self.pipeline, self._advertised(settings))
        engine = self.pipeline.engine
        servicer = Servicer(
            engine.commands,
            engine.reads,
            self.definitions,
            self.dead_letters,
            self.readiness,
            new_id,
            engine.turns,
            redactor,
        )
        sharing = None if self.directory is None else Sharing(self.directory, new_id)
        clients = min(MOST_CONNECTIONS, descriptors.left_to_clients())
        self.grpc = GrpcServer(servicer, settings.grpc_addr, clock, engine.turns, redactor, sharing, clients)
        self.http = HttpServer(settings.http_addr, self.readiness, self.metrics.registry, clock, redactor=redactor)

    def _advertised(self, settings: Settings) -> Callable[[], str]:
        """The address of our gRPC for other workers. It is asked for late: the port is known once it is bound."""

        def address() -> str:
            if settings.advertised_addr is not None:
                return settings.advertised_addr
            host = settings.grpc_addr.rpartition(":")[0]
            return f"{platform.node() if host in EVERY_INTERFACE else host}:{self.grpc.port}"

        return address


def _app(settings: Settings, clock: Clock) -> CeremonyApp:
    return create_app(
        f"{settings.topic_prefix}.engine",
        settings.log,
        clock=clock,
        partitions=settings.partitions,
        topics=topics(settings.topic_prefix, settings.partitions),
        prefix=settings.topic_prefix,
        worker_id=settings.worker_id,
        row_cache=RowCache(settings.row_cache_mib * MIB),
        stores=_stores(settings),
        replication=settings.replication_factor,
        topic_config=settings.topic_config,
    )


def _stores(settings: Settings) -> Stores:
    if settings.state == "memory":
        return MemoryStores()
    from streams.transport.partition.rocks_store import RocksStores  # noqa: PLC0415 - loaded only where it is used

    return RocksStores(settings.state_dir)


def span_exporter(settings: Settings, redactor: Redactor, clock: Clock) -> OtelSpans | None:
    """Return the exporter of spans, or None where none is set: then nothing of OpenTelemetry is imported."""
    if not settings.exports_spans:
        return None
    from bridge.otel.exporter import OtelSpans  # noqa: PLC0415 - loaded only where it is used

    return OtelSpans(redactor, clock, VERSION)


def _valkey_outage(settings: Settings, clock: Clock) -> NeighbourOutage | None:
    """Return the one outage of all that this worker keeps in Valkey; None where it keeps nothing there.

    A history that is read there has the failure in its answer; the log hears of it by the probes or the projectors.
    """
    waits = [waits for role, waits in VALKEY_WAITS.items() if role in settings.roles]
    if valkey_address(settings) is None or not waits:
        return None
    return NeighbourOutage("valkey", clock, "; ".join(waits), settle_seconds=CALLS_SETTLE_SECONDS)


def _idempotency(settings: Settings, clock: Clock, outage: NeighbourOutage | None) -> ValkeyIdempotency | None:
    address = valkey_address(settings)
    if address is None:
        return None
    from bridge.valkey.idempotency import ValkeyIdempotency  # noqa: PLC0415 - loaded only where it is used

    return ValkeyIdempotency(address.client(), clock, settings.worker_id or new_id(), outage)


def _membership(app: CeremonyApp) -> Membership:
    return Membership(
        unserved=lambda: app.unserved,
        held=lambda: app.held(CEREMONY),
        fresh=lambda: app.fresh,
    )


def _directory(
    settings: Settings, clock: Clock, app: CeremonyApp, pipeline: Pipeline, address: Callable[[], str]
) -> WorkerDirectory | None:
    """The directory of the workers that share the log; None for a log of one process, and without the engine role."""
    if app.driver.shared is None or "engine" not in settings.roles:
        return None
    directory = WorkerDirectory(
        app.driver.shared,
        clock,
        pipeline.log_clock,
        prefix=settings.topic_prefix,
        partitions=settings.partitions,
        worker=settings.worker_id or new_id(),
        address=address,
        mine=pipeline.engine.partitions.mine,
        generation=lambda: app.consumer_generation_id,
    )
    pipeline.engine.on_change = directory.changed
    return directory


def _subject_rule(allowed: Sequence[str], definition: Definition, file: str) -> list[Problem]:
    """The rule of this server beyond the language: the subjects that a definition may publish to."""
    return subject_problems(definition, allowed, file)
