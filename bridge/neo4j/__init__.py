"""Neo4j: the client, and the read model that is kept there."""
