"""One module per step kind: the pure kind and its agent; and the ports an agent needs of the world.

A package of the ceremony engine.
"""
