"""NATS: events and publications out, agent responses in."""
