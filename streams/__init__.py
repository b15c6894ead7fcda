"""The pipeline: topics, tables, agents, checkpoints, timers, and the root that wires everything.

A package of the ceremony engine.
"""
