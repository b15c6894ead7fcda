"""Interfaces between the engine and the world: clock, log, Ray executor, outbound messages.

A package of the ceremony engine.
"""
