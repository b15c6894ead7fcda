"""Interfaces between the engine and the world: clock, log, Ray executor, outbound messages. Imports no other package of ours."""
