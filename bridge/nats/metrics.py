"""Metrics of NATS and of dead letters; label children are looked up once, not for each message."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

PUBLISHED = Counter("ceremony_nats_published", "Messages that JetStream acknowledged to the events bridge")
DUPLICATES = Counter("ceremony_nats_duplicates", "Of those, the ones JetStream already had")
RESENT = Counter("ceremony_nats_resent", "Messages the events bridge sent again for want of an acknowledgement")
SKIPPED = Counter("ceremony_nats_skipped", "Events that stood in the log again and had been sent already")
REJECTED = Counter("ceremony_nats_rejected", "Events that NATS refused for good, now dead letters")
DEAD_LETTERS = Counter("ceremony_dead_letters", "Records and messages set aside, as announced", ["code"])
REPLAYED = Counter("ceremony_dead_letters_replayed", "Dead letters that operators sent back, by origin", ["origin"])
IN_FLIGHT = Gauge("ceremony_nats_in_flight", "Messages of the events bridge that are not acknowledged yet")

RECEIVED = Counter("ceremony_nats_received", "Messages of AGENT_RESPONSES by their result", ["result"])
COMMANDS = RECEIVED.labels("command")
MALFORMED = RECEIVED.labels("malformed")
POSTPONED = RECEIVED.labels("postponed")
FOREIGN = Counter("ceremony_nats_foreign", "Messages of AGENT_RESPONSES that belong to no ceremony", ["reason"])
