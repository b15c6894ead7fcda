"""The ceremony engine: its protos and a thin client."""
