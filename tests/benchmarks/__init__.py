"""The benchmark: the engine beside a bare aiokafka loop, on a real Kafka and a real nats-server (`scripts/bench`)."""
