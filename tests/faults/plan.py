"""The plan of a fault run: the faults, their number and length, and the load."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum


class Fault(StrEnum):
    """Faults of the running system."""

    KILL = "worker killed (-9)"
    TERM = "worker ended (SIGTERM)"
    NATS = "NATS down"
    RAY = "Ray executor down"
    KAFKA = "Kafka broker killed (-9)"
    ZOMBIE = "worker frozen, replaced, woken"
    STREAM = "NATS stream deleted, republished"
    ODD_RAY = "Ray executor misbehaves"
    CHURN = "worker added or removed, again and again"
    CLOCK = "worker's clock an hour off"
    LEADER = "leading broker of three killed (-9)"
    BROKERS = "all three brokers restarted"
    UNREACHABLE = "all three brokers out of reach"


# Faults that need three brokers.
CLUSTER = frozenset({Fault.LEADER, Fault.BROKERS, Fault.UNREACHABLE})


@dataclass(frozen=True, slots=True)
class Plan:
    """The plan of one run, in seconds throughout."""

    kills: int
    terms: int
    nats_down: float
    ray_down: float
    kafka_down: float
    """0 leaves the broker alone."""
    frozen: float
    """Longer than the group's session timeout of 6 s, so that another worker takes over."""
    starts_per_second: float
    steady: float
    """Load before and after a fault, besides a random part."""
    look: float
    """Longest pause between looks at a ceremony that waits for people."""
    step_timeout: float
    """Timeout after which an answer that was lost with the Ray executor is requested again."""
    seed: int = 0
    stream_deleted: int = 0
    """Number of deletions."""
    odd_ray: float = 0
    """Time for which the Ray executor misbehaves."""
    churn: float = 0
    """Time for which workers come and go, one every `churn_every`."""
    churn_every: float = 5
    clock: float = 0
    """Length of each wrong clock."""
    leader_down: float = 0
    brokers_down: float = 0
    unreachable: float = 0

    @property
    def faults(self) -> list[Fault]:
        wanted = {
            Fault.KILL: self.kills,
            Fault.TERM: self.terms,
            Fault.NATS: self.nats_down,
            Fault.RAY: self.ray_down,
            Fault.KAFKA: self.kafka_down,
            Fault.ZOMBIE: self.frozen,
            Fault.STREAM: self.stream_deleted,
            Fault.ODD_RAY: self.odd_ray,
            Fault.CHURN: self.churn,
            Fault.CLOCK: self.clock,
            Fault.LEADER: self.leader_down,
            Fault.BROKERS: self.brokers_down,
            Fault.UNREACHABLE: self.unreachable,
        }
        return [fault for fault, size in wanted.items() if size]


FULL = Plan(
    kills=5,
    terms=3,
    nats_down=20,
    ray_down=20,
    kafka_down=5,
    frozen=12,
    starts_per_second=25,
    steady=5,
    look=3,
    step_timeout=40,
)
SHORT = Plan(
    kills=2,
    terms=1,
    nats_down=4,
    ray_down=4,
    kafka_down=0,
    frozen=8,
    starts_per_second=8,
    steady=1,
    look=1.2,
    step_timeout=8,
    stream_deleted=1,
    odd_ray=5,
)
LONG = replace(
    FULL,
    stream_deleted=1,
    odd_ray=30,
    churn=180,
    clock=15,
    leader_down=10,
    brokers_down=5,
    unreachable=60,
)
# Runs of the long form, if not 3: ten runs of five kills are 50 moments.
RUNS = {Fault.KILL: 10}
