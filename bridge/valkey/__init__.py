"""Valkey: the client, the marks of published messages, and the read model that is kept there."""
