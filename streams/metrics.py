"""The engine's Prometheus metrics; labels are looked up once, never per record on the hot path."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Mapping
from functools import cache

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

from streams.histograms import BatchHistogram
from streams.label_bounds import BoundedNames

MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0
# Upper bounds of the histograms' buckets: of writes to the log, of attempts (a model answers in seconds or in an hour),
# of people's decisions, and of whole ceremonies.
BUCKETS_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
STEP_BUCKETS_SECONDS = (0.01, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, MINUTE, 150.0, 300.0, 900.0, HOUR, 3 * HOUR, DAY)
GATE_BUCKETS_SECONDS = (MINUTE, 300.0, 900.0, HOUR, 4 * HOUR, 8 * HOUR, DAY, 2 * DAY, 3 * DAY, 7 * DAY, 14 * DAY)
CEREMONY_BUCKETS_SECONDS = (1.0, 10.0, MINUTE, 300.0, 900.0, HOUR, 4 * HOUR, 12 * HOUR, DAY, 3 * DAY, 7 * DAY, 30 * DAY)


class Metrics:
    """All metrics of one worker. Hot paths count in plain dicts and add the result once per batch."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.build = Gauge(
            "ceremony_build_info", "Always 1; the label is the release that runs.", ["version"], registry=self.registry
        )
        self.commands = Counter("ceremony_commands", "Commands folded, by type.", ["type"], registry=self.registry)
        self.unchanged = Counter(
            "ceremony_commands_unchanged",
            "Commands that changed nothing, by reason.",
            ["reason"],
            registry=self.registry,
        )
        self.unjudged = Counter(
            "ceremony_guards_unjudged",
            "Guards that could not be judged, and so did not hold: failed, or refused by this release.",
            ["reason"],
            registry=self.registry,
        )
        self.definition_names = BoundedNames()
        """Of the label `definition`."""
        self.started = Counter(
            "ceremony_started", "Ceremonies that began, by definition.", ["definition"], registry=self.registry
        )
        self.ended = Counter(
            "ceremony_ended",
            "Ceremonies that reached a terminal status.",
            ["definition", "status"],
            registry=self.registry,
        )
        self.lifetime = BatchHistogram(
            "ceremony_lifetime_seconds",
            "Time from the start of a ceremony to its end.",
            ["definition"],
            buckets_seconds=CEREMONY_BUCKETS_SECONDS,
            registry=self.registry,
        )
        self.steps = Counter(
            "ceremony_steps",
            "Steps that ended, by status; WAITING_FOR_HUMAN counts gates as they open.",
            ["definition", "handler", "status"],
            registry=self.registry,
        )
        self.retries = Counter(
            "ceremony_step_retries",
            "Attempts of steps that failed and are tried again.",
            ["definition", "handler"],
            registry=self.registry,
        )
        self.step_seconds = BatchHistogram(
            "ceremony_step_seconds",
            "Time of the last attempt of a step that completed or failed, from its request to its end.",
            ["handler"],
            buckets_seconds=STEP_BUCKETS_SECONDS,
            registry=self.registry,
        )
        self.gates = BatchHistogram(
            "ceremony_gate_seconds",
            "Time that a gate was open, until a decision, its deadline or its cancellation.",
            ["definition"],
            buckets_seconds=GATE_BUCKETS_SECONDS,
            registry=self.registry,
        )
        self.events = Counter(
            "ceremony_events", "Events sent by the fold, by subject.", ["subject"], registry=self.registry
        )
        self.published = Counter(
            "ceremony_publish",
            "Messages of publish steps acknowledged by JetStream; duplicate: it had the message already.",
            ["definition", "handler", "duplicate"],
            registry=self.registry,
        )
        self.publish_failures = Counter(
            "ceremony_publish_failures",
            "Publish steps that failed for good.",
            ["definition", "handler"],
            registry=self.registry,
        )
        self.idempotency = Counter(
            "ceremony_idempotency",
            "Look-ups of publish steps in the idempotency store, by the record that served.",
            ["served_by"],
            registry=self.registry,
        )
        self.partitions = Gauge("ceremony_partitions_owned", "Partitions this worker owns.", registry=self.registry)
        self.partitions_configured = Gauge(
            "ceremony_partitions_configured",
            "Partitions that there are; all workers together own as many.",
            registry=self.registry,
        )
        self.stuck = Gauge(
            "ceremony_stuck",
            "Ceremonies of the owned partitions that wait for nothing, which is a bug.",
            registry=self.registry,
        )
        self.by_status = Gauge(
            "ceremony_instances_by_status",
            "Ceremonies of the owned partitions, by status.",
            ["status"],
            registry=self.registry,
        )
        self.unexamined = Gauge(
            "ceremony_unexamined",
            "Changed rows that the counts of stuck, waiting and open ones do not include yet.",
            registry=self.registry,
        )
        self.open_gates = Gauge(
            "ceremony_gates_open",
            "Gates of the owned partitions that wait for a decision.",
            ["definition"],
            registry=self.registry,
        )
        self.waiting = Gauge(
            "ceremony_waiting",
            "Ceremonies of the owned partitions by what they wait for: pause, attempt, gate, guard (of a person).",
            ["kind"],
            registry=self.registry,
        )
        self.oldest_wait = Gauge(
            "ceremony_oldest_wait_seconds",
            "Age of the oldest wait of each kind; guard: since the last change of the ceremony; "
            "timer: how far the most overdue timer is behind.",
            ["kind"],
            registry=self.registry,
        )
        self.live = Gauge("ceremony_instances", "Rows of ceremonies in the owned partitions.", registry=self.registry)

        self.saving = Histogram(
            "ceremony_checkpoint_seconds",
            "Duration of a checkpoint, until its effects are acknowledged and its rows committed.",
            buckets=BUCKETS_SECONDS,
            registry=self.registry,
        )
        self.rows_saved = Counter("ceremony_checkpoint_rows", "Rows written by checkpoints.", registry=self.registry)
        self.bytes_saved = Counter(
            "ceremony_checkpoint_bytes",
            "Bytes of the rows written by checkpoints, as encoded.",
            registry=self.registry,
        )
        self.checkpoint_age = Gauge(
            "ceremony_checkpoint_age_seconds",
            "Time since the last checkpoint of the owned partition that waits longest; it grows while one hangs.",
            registry=self.registry,
        )
        self.lag = Gauge(
            "ceremony_consumer_lag_records",
            "Records of the owned partitions that the engine has not taken yet, by topic.",
            ["topic"],
            registry=self.registry,
        )
        self.recovering = Histogram(
            "ceremony_recovery_seconds",
            "Duration of a take-over, until the former owner is fenced and the rows are recovered.",
            buckets=BUCKETS_SECONDS,
            registry=self.registry,
        )
        self.recovered_last = Gauge(
            "ceremony_recovery_last_seconds",
            "Duration of the last take-over.",
            registry=self.registry,
        )
        self.rows_recovered = Counter("ceremony_recovery_rows", "Rows recovered at take-over.", registry=self.registry)

    def saved(self, rows: int, size: int, seconds: float) -> None:
        """Count a durable checkpoint of a partition; `size`: bytes of its rows."""
        self.saving.observe(seconds)
        self.rows_saved.inc(rows)
        self.bytes_saved.inc(size)

    def recovered(self, rows: int, seconds: float) -> None:
        """Count a partition that was taken."""
        self.recovering.observe(seconds)
        self.recovered_last.set(seconds)
        self.rows_recovered.inc(rows)

    @staticmethod
    def add(counter: Counter, tally: Mapping[str, int]) -> None:
        """Add a batch's tally to a counter with one label."""
        for label, count in tally.items():
            counter.labels(label).inc(count)


@cache
def process_metrics() -> Metrics:
    """Return the metrics of this process, in Prometheus' own registry beside those of the bridges."""
    return Metrics(REGISTRY)


class BatchTally:
    """Counts of one batch, to be added to the metrics."""

    def __init__(self) -> None:
        self.commands: Tally[str] = Tally()
        self.unchanged: Tally[str] = Tally()
        self.unjudged: Tally[str] = Tally()
        self.events: Tally[str] = Tally()

    def add_to(self, metrics: Metrics) -> None:
        metrics.add(metrics.commands, self.commands)
        metrics.add(metrics.unchanged, self.unchanged)
        metrics.add(metrics.unjudged, self.unjudged)
        metrics.add(metrics.events, self.events)
