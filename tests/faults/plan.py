"""How much is broken, how hard, and under what load."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum


class Fault(StrEnum):
    """What is done to the running system."""

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


# Those that need three brokers.
CLUSTER = frozenset({Fault.LEADER, Fault.BROKERS, Fault.UNREACHABLE})


@dataclass(frozen=True, slots=True)
class Plan:
    """One run of the faults; seconds throughout."""

    kills: int
    terms: int
    nats_down: float
    ray_down: float
    kafka_down: float
    """0: the broker is left alone."""
    frozen: float
    """Past the group's session timeout of 6 s, so that another worker takes over."""
    starts_per_second: float
    steady: float
    """Load before a fault and after it, beside the random part."""
    look: float
    """The longest until somebody looks again at a ceremony that waits for people."""
    step_timeout: float
    """An answer that died with the Ray executor is asked for again after this."""
    seed: int = 0
    stream_deleted: int = 0
    """How often."""
    odd_ray: float = 0
    """How long it misbehaves."""
    churn: float = 0
    """How long workers come and go, one every `churn_every`."""
    churn_every: float = 5
    clock: float = 0
    """How long each of the wrong clocks lasts."""
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
# Of the long form, where it is not 3: with five kills each these are 50 moments.
RUNS = {Fault.KILL: 10}
