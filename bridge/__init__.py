"""One module per neighbour: NATS, the Ray executor, gRPC, HTTP, the host clock, the command line.

A package of the ceremony engine.
"""
