"""The Kafka driver, on aiokafka."""
