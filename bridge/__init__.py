"""The neighbours, one folder each: gRPC, NATS, the Ray executor, HTTP; and the host's clock and definition files.

A package of the ceremony engine.
"""
