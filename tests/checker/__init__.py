"""The checker: judges a run by what the outside can see of it. It imports nothing of the engine."""
