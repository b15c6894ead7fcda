"""The client of the Ray executor."""
