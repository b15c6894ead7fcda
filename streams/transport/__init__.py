"""The Faust drivers: real Faust agents over fetched batches, on Kafka and on one SQLite file."""
