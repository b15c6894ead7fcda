"""NATS: publishes events and messages of publish steps, and pulls the responses of agents."""
