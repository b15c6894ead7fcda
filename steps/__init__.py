"""One module per step kind, with its pure kind and its agent; the registry lists them all.

A package of the ceremony engine.
"""
