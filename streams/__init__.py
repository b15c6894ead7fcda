"""The pipeline: topics, agents, timers, the log's drivers, and the engine that clients and bridges use.

A package of the ceremony engine.
"""
