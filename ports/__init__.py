"""Interfaces between the engine and the world: clock, log, Ray executor, outbound messages."""
