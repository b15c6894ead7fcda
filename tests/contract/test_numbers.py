"""The numbers of the specification and the design, written out: changing one here means changing it there."""

from __future__ import annotations

from bridge.grpc import history as grpc_history
from bridge.grpc import messages, refusals, start_request
from bridge.nats import response_messages, streams
from bridge.ray import executor
from bridge.valkey import history as valkey_history
from ceremony.settings import Settings
from ports import log
from steps import aggregation, publish, ray_task
from steps.config import Constraints
from steps.registry import all_kinds
from streams import copy_reader, history, partition_timers, timers, topology, waiters
from streams.topics import STEP_KINDS
from streams.transport.partition import assignment, checkpoints
from tables import instance, limits, retries
from tables.definition import RetryPolicy, Timeouts
from tables.definitions import yaml_source
from tables.definitions.loader import load
from tables.fold import retention
from tests.contract.asyncapi import document

KIB = 1024
DAY = 24 * 60 * 60 * 1000
BARE = """version: "1.0"
name: bare
description: What a file need not say.
states:
  - {id: RUN, description: r, initial: true}
  - {id: DONE, description: d, terminal: true}
transitions:
  - {from: RUN, to: DONE, trigger: finish, guards: [ready], description: f}
steps:
  - {id: one, state: RUN, handler: aggregation_step, config: {sources: [a], aggregation_type: merge}}
  - {id: two, state: RUN, handler: aggregation_step, retry: named, config: {sources: [a], aggregation_type: merge}}
guards:
  ready: {check: all_steps_completed}
retry_policies:
  named: {max_attempts: 3}
"""


def test_defaults_of_a_definition_are_the_specified_ones() -> None:
    """Time limits are in seconds, the back-off is 5 s, there is no retry without a policy, guards are automated."""
    # specification 2.2, 2.10, 2.12, 3.1, 11.3
    definition = load(BARE, "bare.yaml", all_kinds())
    assert definition.timeouts == Timeouts(step_default=3600, step_max=86400, ceremony_max=604800)
    assert (definition.required_inputs, definition.optional_inputs, definition.outputs, definition.roles) == (
        (),
        (),
        {},
        {},
    )
    one, two = definition.steps.values()
    assert (one.timeout_seconds, one.after, two.after, one.on_failure) == (3600, (), ("one",), None)
    assert one.retry == RetryPolicy(max_attempts=1)
    assert two.retry == RetryPolicy(
        3, 5, exponential_backoff=False, max_backoff_seconds=None, jitter=0.0, non_retryable=()
    )
    assert definition.guards["ready"].type == "automated"
    assert not definition.states["RUN"].terminal and not definition.states["DONE"].initial


def test_statuses_are_the_specified_ones() -> None:
    # specification 1.3, 1.4
    ended = ["COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"]
    assert list(instance.CeremonyStatus) == ["RUNNING", "WAITING_FOR_HUMAN", "PAUSED", *ended]
    assert sorted(instance.TERMINAL) == sorted(ended)
    steps = ["PENDING", "IN_PROGRESS", "COMPLETED", "FAILED", "WAITING_FOR_HUMAN", "CANCELLED"]
    assert list(instance.StepStatus) == steps
    outside = document()["components"]["schemas"]["CeremonyStatus"]["enum"]
    assert outside == list(instance.CeremonyStatus)


def test_defaults_of_constraints_are_the_specified_ones() -> None:
    """The timeout is 300 s, with 3 retries."""
    # specification 5.2
    assert (Constraints().timeout_seconds, Constraints().max_retries) == (300, 3)


def test_size_limits_are_the_specified_ones() -> None:
    # specification 2.4, 5.3, 10.11, 11.13, 14.9, 17.7, 20.1
    assert yaml_source.MAX_BYTES == 256 * KIB
    assert limits.MAX_INPUTS_BYTES == start_request.LARGEST_INPUTS_BYTES == 256 * KIB
    assert limits.MAX_OUTPUT_BYTES == response_messages.LARGEST_VALUE_BYTES == 256 * KIB
    assert ray_task.LARGEST_DESCRIPTION_BYTES == 256 * KIB
    assert limits.MAX_ROW_BYTES == 768 * KIB
    assert limits.MAX_INPUT_DEPTH == start_request.DEEPEST == 64
    assert messages.LARGEST_ANSWER_BYTES == 3 * KIB * KIB
    assert (publish.LARGEST_PAYLOAD_BYTES, aggregation.LARGEST_REQUEST_BYTES) == (200 * KIB, 2 * KIB * KIB)
    assert (limits.MAX_OUTPUT_DEPTH, response_messages.DEEPEST, yaml_source.MAX_DEPTH) == (128, 64, 64)
    assert (log.LARGEST_RECORD_BYTES, log.LARGEST_BATCH_BYTES) == (4 * KIB * KIB, KIB * KIB)


def test_count_limits_are_the_specified_ones() -> None:
    # specification 12.6, 13.12, 14.8, 14.13, 26.1
    assert limits.MAX_TRANSITIONS == 100
    assert instance.KEPT_COMMAND_IDS == 64
    assert (refusals.DEFAULT_LIMIT, refusals.LARGEST_LIMIT) == (100, 1000)
    assert (grpc_history.DEFAULT_HISTORY, grpc_history.LONGEST_HISTORY) == (200, 1000)


def test_times_are_the_specified_ones() -> None:
    # specification 10.3, 11.8, 14.4, 14.13, 26.1, 15.4, 16.5, 18.7 and design 5, 6
    assert waiters.FOLD_SECONDS == 2
    assert (history.READ_SECONDS, history.PAGE_SECONDS, copy_reader.COPY_SECONDS) == (10, 3, 1)
    assert (retries.ASK_FIRST_MS, retries.ASK_LONGEST_MS) == (1_000, 30_000)
    assert (partition_timers.AGAIN_SECONDS, timers.LEARN_SECONDS) == (1, 60)
    assert executor.CALL_TIMEOUT_SECONDS == Settings.model_fields["ray_call_timeout_seconds"].default == 10
    assert Settings.model_fields["take_over_grace_seconds"].default == 30
    assert (streams.DUPLICATE_WINDOW_SECONDS, streams.MAX_AGE_SECONDS) == (10 * 60, 30 * 24 * 60 * 60)
    assert (assignment.SHORTEST_INTERVAL_SECONDS, assignment.INTERVAL_PER_PARTITION_SECONDS) == (0.5, 0.040)
    assert (checkpoints.Limits().commands, checkpoints.Limits().bytes) == (5_000, 8 * KIB * KIB)


def test_retention_times_are_the_specified_ones() -> None:
    """A stub remains after 30 days and is removed a year later; commands and requests stay 7 days, events 30 days."""
    # specification 21.1, 21.2, 26.5, 26.8
    assert (valkey_history.MOST_EVENTS, valkey_history.ORPHAN_SECONDS * 1000) == (10_000, 30 * DAY)
    assert (retention.UNTIL_STUB_MS, retention.UNTIL_TOMBSTONE_MS) == (30 * DAY, 365 * DAY)
    kept = {topic.name: topic.retention_ms for topic in topology.topics("x", 3)}
    del kept["x.owners"]  # internal to the workers, outside the specification
    requests = {f"x.steps.{kind}": 7 * DAY for kind in STEP_KINDS}
    ours = {"x.deadletters": -1, "x.audit": -1}
    assert kept == {"x.commands": 7 * DAY, **requests, "x.events": 30 * DAY, **ours}
