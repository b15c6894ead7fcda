"""The Faust application of the engine: real Faust agents on one of the engine's logs, in the program's event loop.

    app = create_app("engine", "kafka://broker:9092", clock=clock, partitions=8, topics=SPECS, prefix="c")
    app.attach(AgentSpec("ceremony", "c.commands", tables=[...]), ceremony)  # async def ceremony(stream): ...
    app.on_crash = lambda failure: stop.set()                              # the worker must end
    await app.start()                                                      # topics made, agents run, group joined
    ...
    await app.stop()                                                       # last checkpoints, group left

Or `async with app:`. Faust's command line does not own the process (the program handles signals), but
`faust -A module agents` and `faust -A module tables` list the agents and tables of a module-level `app`. `start`
returns before partitions are recovered; `settled` turns true once every assigned partition is served or in `unserved`.
`stop` is idempotent and works after a crash.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Coroutine, Mapping, Sequence
from typing import Any, cast

import faust
from yarl import URL

from ports.clock import Clock
from ports.log import AgentSpec, Batch, Log, LogUrlInvalid, PartitionView, TopicSpec
from ports.masking import masked
from streams import topics as names
from streams.letter_budget import LetterBudget
from streams.transport.faust.agents import BatchSchema, BatchStream, RowsTable, Supervisor, Tables, supervised
from streams.transport.faust.assignor import StayingAssignor
from streams.transport.faust.membership import GroupTransport, MemberConsumer
from streams.transport.partition.assignment import PartitionAssignment
from streams.transport.partition.batch import PartBatch
from streams.transport.partition.checkpoints import Limits
from streams.transport.partition.dead_letters import DeadLetterTopic
from streams.transport.partition.part import Part
from streams.transport.partition.row_cache import RowCache
from streams.transport.partition.row_store import MemoryStores, Stores

AgentFunction = Callable[[AsyncIterable[Batch]], Coroutine[Any, Any, None]]

# A member may go this long without polling: the group's consumer never polls, as a separate reader fetches.
FOR_EVER_SECONDS = 100 * 365 * 24 * 3600.0


class CeremonyApp(faust.App):
    """A Faust app whose agents get batches; the module's docstring shows its use."""

    def __init__(
        self,
        name: str,
        *,
        clock: Clock,
        partitions: int,
        topics: Sequence[TopicSpec],
        prefix: str,
        worker_id: str | None = None,
        replication: int = 1,
        topic_config: Mapping[str, str] | None = None,
        limits: Limits | None = None,
        row_cache: RowCache | None = None,
        stores: Stores | None = None,
        letter_budget: LetterBudget | None = None,
        **settings: Any,
    ) -> None:
        self.clock = clock
        self.partitions = partitions
        self.topic_specs = list(topics)
        self.prefix = prefix
        self.worker_id = worker_id
        self.replication = replication
        self.topic_config = dict(topic_config or {})
        self.limits = limits
        self.row_cache = row_cache or RowCache()
        self.stores = stores or MemoryStores()
        self.letter_budget = letter_budget
        self.specs: dict[str, AgentSpec] = {}
        self.attached_topics: set[str] = set()
        self.on_crash: Callable[[BaseException], None] | None = None
        self.failure: BaseException | None = None
        self._owner: PartitionAssignment | None = None
        super().__init__(name, **{**_settings(partitions, worker_id), **settings})

    # ---- declaration

    def attach(self, spec: AgentSpec, fun: AgentFunction) -> Any:
        """Declare an agent and its tables: `async def fun(stream)`, where the stream yields `Batch` objects.

        Returns the Faust agent. Raises ValueError for a name or a topic that is taken, RuntimeError when started.
        """
        if self._owner is not None:
            raise RuntimeError(f"agent {spec.name} is attached too late: the app's partitions are declared already")
        if spec.name in self.specs or spec.topic in self.attached_topics:
            raise ValueError(f"agent {spec.name}: its name or its topic {spec.topic} is taken; one agent per topic")
        self.specs[spec.name] = spec
        self.attached_topics.add(spec.topic)
        for table in spec.tables:
            self.Table(table.name, partitions=self.partitions, help=f"rows of agent {spec.name}")
        channel = self.topic(spec.topic, partitions=self.partitions, schema=BatchSchema(), internal=False)
        return self.agent(channel, name=spec.name)(supervised(spec.name, fun))

    # ---- state, for code outside the agents

    @property
    def driver(self) -> GroupTransport:
        return cast("GroupTransport", self.transport)

    @property
    def commit_log(self) -> Log:
        """The log beside the agents (`log` is the logger of Faust's services). Usable once the app has started."""
        return self.driver.log

    @property
    def owner(self) -> PartitionAssignment:
        if self._owner is None:
            self._owner = PartitionAssignment(
                list(self.specs.values()),
                partitions=self.partitions,
                clock=self.clock,
                new_backend=self.driver.backend,
                deliver=self._deliver,
                dead_letters=self._dead_letters(),
                fail=self.fail,
                limits=self.limits,
                cache=self.row_cache,
                stores=self.stores,
            )
        return self._owner

    @property
    def parts(self) -> Sequence[Part]:
        """Parts of all agents that are served here, with positions and counters."""
        return self.owner.parts

    def views(self, agent: str) -> Mapping[int, PartitionView]:
        """Partitions of an agent that are served here, by number; a missing one is not assigned or being recovered."""
        return self.owner.views(agent)

    @property
    def unserved(self) -> Mapping[int, tuple[str, str]]:
        """Assigned partitions that are not served, each with a code, the reason and a remedy."""
        return self.owner.unserved

    @property
    def settled(self) -> bool:
        """True after an assignment, once each of its partitions is served or in `unserved`."""
        return self._assignment is not None and not self.rebalancing and self.owner.settled

    def held(self, agent: str) -> frozenset[int] | None:
        """Partitions of an agent assigned to this worker, served or not; None while the group settles them anew."""
        if self._assignment is None or (self.rebalancing and not self.owner.assigned):
            return None
        return frozenset(number for name, number in self.owner.assigned if name == agent)

    @property
    def fresh(self) -> bool:
        """False once another worker may own these partitions: after a freeze, or without contact to the group."""
        return self._consumer is not None and cast("MemberConsumer", self._consumer).fresh

    # ---- life cycle

    async def on_first_start(self) -> None:
        """Do not create Faust's data folder; rows live in the stores and in the log."""

    async def on_start(self) -> None:
        await self.stores.start()
        await self.commit_log.start()
        await self.commit_log.create(self.all_topics)
        await super().on_start()

    async def on_shutdown(self) -> None:
        await self.driver.close()
        await self.stores.stop()
        await self.commit_log.stop()
        await super().on_shutdown()

    async def _deliver(self, batch: PartBatch) -> None:
        await cast("MemberConsumer", self.consumer).deliver(batch)

    async def _stop_consumer(self) -> None:
        """Finish and checkpoint the batches in hand, before Faust suspends its streams."""
        if self._consumer is not None:
            await cast("MemberConsumer", self._consumer).give_up()

    def _crash(self, reason: BaseException) -> None:
        """Report a failure of any service of Faust to the program, which ends the worker."""
        super()._crash(reason)
        self._report(reason)

    def fail(self, failure: BaseException) -> None:
        """Report a write that was refused for good, so that the worker stops."""
        self._report(failure)

    def _report(self, failure: BaseException) -> None:
        if self.failure is None:
            self.failure = failure
            if self.on_crash is not None:
                self.on_crash(failure)

    @property
    def all_topics(self) -> list[TopicSpec]:
        """The topics to create, changelogs included."""
        changelogs = [
            TopicSpec(names.prefixed(self.prefix, names.changelog(table.name)), self.partitions, compacted=True)
            for spec in self.specs.values()
            for table in spec.tables
        ]
        return [*self.topic_specs, *changelogs]

    def _dead_letters(self) -> DeadLetterTopic:
        topic = names.prefixed(self.prefix, names.DEADLETTERS)
        partitions = next((spec.partitions for spec in self.topic_specs if spec.name == topic), self.partitions)
        return DeadLetterTopic(topic, partitions, self.letter_budget, self.driver.keeps_consumed)


def _settings(partitions: int, worker_id: str | None) -> dict[str, Any]:
    return {
        "PartitionAssignor": StayingAssignor,
        "Stream": BatchStream,
        "Table": RowsTable,
        "TableManager": Tables,
        "agent_supervisor": Supervisor,
        "autodiscover": False,
        "broker_heartbeat_interval": 0.3,  # its answer tells of a rebalance, and of its second round
        "broker_max_poll_interval": FOR_EVER_SECONDS,
        "broker_rebalance_timeout": 15.0,
        "broker_session_timeout": 6.0,
        "consumer_group_instance_id": worker_id,
        "store": "memory://",
        "stream_wait_empty": False,
        "table_standby_replicas": 0,
        "topic_disable_leader": True,
        "topic_partitions": partitions,
        "web_enabled": False,
        "worker_redirect_stdouts": False,
    }


def create_app(
    name: str,
    url: str,
    *,
    clock: Clock,
    partitions: int,
    topics: Sequence[TopicSpec],
    prefix: str,
    worker_id: str | None = None,
    **settings: Any,
) -> CeremonyApp:
    """Return an app on the log at `url` (`kafka://host:port[,host:port]` or `sqlite:///path`) in the group `name`.

    `topics`: topics to create, by full name; `attach` adds changelogs. `settings`: `replication` (factor),
    `topic_config` (extra settings of every topic), `limits`, `row_cache`, `stores`, `letter_budget`, and settings
    of Faust. Raises LogUrlInvalid for another scheme.
    """
    app = CeremonyApp(
        name,
        clock=clock,
        partitions=partitions,
        topics=topics,
        prefix=prefix,
        worker_id=worker_id,
        broker=url,
        **settings,
    )
    app.transport = _transport(url)(_urls(url), app)
    return app


def _transport(url: str) -> type[GroupTransport]:
    scheme = url.partition("://")[0]
    if scheme == "kafka":
        from streams.transport.kafka.driver import KafkaTransport  # noqa: PLC0415 - only the driver in use is loaded

        return KafkaTransport
    if scheme == "sqlite":
        from streams.transport.sqlite.driver import SqliteTransport  # noqa: PLC0415 - as above

        return SqliteTransport
    raise LogUrlInvalid(f"{masked(url)!r} is neither kafka://host:port nor sqlite:///path")


def open_log(url: str, clock: Clock, *, replication: int = 1, topic_config: Mapping[str, str] | None = None) -> Log:
    """Return the log at `url` without an app, not started yet. Raises LogUrlInvalid.

    `replication`, `topic_config`: of topics that it creates on Kafka.
    """
    if url.startswith("sqlite://"):
        from streams.transport.sqlite import driver  # noqa: PLC0415 - as above

        return driver.open_log(URL(url), clock)
    from streams.transport.kafka.driver import servers  # noqa: PLC0415 - as above
    from streams.transport.kafka.log import KafkaLog  # noqa: PLC0415 - as above

    return KafkaLog(servers(_urls(url)), clock, replication=replication, topic_config=topic_config)


def _urls(url: str) -> list[URL]:
    scheme, _, rest = url.partition("://")
    if scheme == "sqlite":
        return [URL(url)]
    return [URL(f"{scheme}://{host}") for host in rest.split(",")]
