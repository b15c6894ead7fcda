"""Starts the real services that tests, benchmark and fault runner need: Kafka, nats-server, Valkey and Neo4j.

Plain processes on 127.0.0.1, no container. All calls here block; in a running event loop use
`await asyncio.to_thread(server.start)`.
"""

from tests.services.kafka import CLUSTER, KafkaCluster, KafkaServer, installed_kafka
from tests.services.nats import NatsServer
from tests.services.neo4j import Neo4jServer, installed_neo4j
from tests.services.server import Server, ServiceError, end_orphans, free_port, running
from tests.services.valkey import NEVER, ValkeyServer

__all__ = [
    "CLUSTER",
    "NEVER",
    "KafkaCluster",
    "KafkaServer",
    "NatsServer",
    "Neo4jServer",
    "Server",
    "ServiceError",
    "ValkeyServer",
    "end_orphans",
    "free_port",
    "installed_kafka",
    "installed_neo4j",
    "running",
]
