"""Metrics of NATS and of dead letters; label children are looked up once, not for each message."""

from __future__ import annotations

from prometheus_client import REGISTRY, Counter, Gauge

from streams.histograms import BatchHistogram

# Upper bounds of the buckets of hops: milliseconds, and the length of an outage.
HOP_BUCKETS_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 300.0, 1800.0, 3600.0)

PUBLISHED = Counter("ceremony_nats_published", "Messages that JetStream acknowledged to the events bridge")
DUPLICATES = Counter("ceremony_nats_duplicates", "Acknowledged messages that JetStream had already")
RESENT = Counter("ceremony_nats_resent", "Messages the events bridge sent again for want of an acknowledgement")
SKIPPED = Counter("ceremony_nats_skipped", "Events that stood in the log again and had been sent already")
REJECTED = Counter("ceremony_nats_rejected", "Events that NATS refused for good, now dead letters")
DEAD_LETTERS = Counter("ceremony_dead_letters", "Records and messages set aside, as announced", ["code"])
REPLAYED = Counter("ceremony_dead_letters_replayed", "Dead letters that operators sent back, by origin", ["origin"])
IN_FLIGHT = Gauge("ceremony_nats_in_flight", "Messages of the events bridge that are not acknowledged yet")
LAG_RECORDS = Gauge("ceremony_nats_lag_records", "Records that wait to be published to NATS, by topic", ["topic"])
LAG_SECONDS = Gauge("ceremony_nats_lag_seconds", "Age of the oldest record that is being published")
HOPS = BatchHistogram(
    "ceremony_hop_seconds",
    "The way of an event: fold (its command's append to its own), nats (from there to JetStream), whole (both)",
    ["hop"],
    buckets_seconds=HOP_BUCKETS_SECONDS,
    registry=REGISTRY,
)
HOP_FOLD, HOP_TO_NATS, HOP_WHOLE = HOPS.of("fold"), HOPS.of("nats"), HOPS.of("whole")

RESPONSES_WAITING = Gauge(
    "ceremony_nats_responses_waiting", "Messages of AGENT_RESPONSES that no worker has taken or acknowledged yet"
)
RECEIVED = Counter("ceremony_nats_received", "Messages of AGENT_RESPONSES by their result", ["result"])
COMMANDS = RECEIVED.labels("command")
MALFORMED = RECEIVED.labels("malformed")
POSTPONED = RECEIVED.labels("postponed")
FOREIGN = Counter("ceremony_nats_foreign", "Messages of AGENT_RESPONSES that belong to no ceremony", ["reason"])
