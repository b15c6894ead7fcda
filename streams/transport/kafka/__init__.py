"""The Kafka driver, on aiokafka."""

from streams.transport.kafka.metadata import create_nothing_by_looking

create_nothing_by_looking()
