"""Metadata requests that create no topic.

aiokafka asks for metadata with `allow_auto_topic_creation`, and has no option against it. A broker with its default
`auto.create.topics.enable=true` then makes every topic that somebody asks for, with one partition and its own settings.
"""

from __future__ import annotations

import aiokafka.admin.client
import aiokafka.client
from aiokafka.protocol.metadata import MetadataRequest


class LookingRequest(MetadataRequest):  # type: ignore[misc]
    """A metadata request that creates nothing."""

    def __init__(self, topics: list[str] | None = None, allow_auto_topic_creation: bool | None = None) -> None:  # noqa: FBT001
        super().__init__(topics, allow_auto_topic_creation=False)


def create_nothing_by_looking() -> None:
    """Let all clients of aiokafka in this process ask with LookingRequest."""
    for module in (aiokafka.client, aiokafka.admin.client):
        module.MetadataRequest = LookingRequest
