"""The checker: judges a run by its messages and gRPC answers. It imports nothing of the engine."""
