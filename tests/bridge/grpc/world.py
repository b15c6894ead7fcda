"""Shared by the tests of the gRPC server: definitions that use every rule, and refusals as a client receives them."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from shutil import copytree
from types import MappingProxyType
from typing import Any, NamedTuple
from urllib.parse import quote

import grpc
import grpc.aio
import pytest
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from grpc_status import rpc_status

from tests.e2e.world import SPECS

HEAD = 'version: "1.0"\nname: {name}\ndescription: for the tests of the gRPC server\n'
DOORS = """
inputs: {optional: [note], searchable: [note]}
states:
  - {id: OPEN, description: Two guards are asked, initial: true}
  - {id: NEXT, description: A clerk agrees}
  - {id: DONE, description: Done, terminal: true}
  - {id: SHUT, description: Shut, terminal: true}
transitions:
  - {from: OPEN, to: NEXT, trigger: go_on, description: Both let it in}
  - {from: OPEN, to: SHUT, trigger: shut, description: A guard shuts it}
  - {from: NEXT, to: DONE, trigger: finish, guards: [clerk_agrees], description: The clerk agrees}
  - {from: NEXT, to: OPEN, trigger: back, guards: [clerk_sends_back], description: The clerk sends it back}
guards:
  clerk_agrees: {type: human, check: all is well, role: CLERK}
  clerk_sends_back: {type: human, check: look again, role: CLERK}
steps:
  - {id: let_in, state: OPEN, handler: human_gate_step, config: {role: GUARD, message: "Let it in?", quorum: 2}}
roles:
  - {id: GUARD, description: Guards the door, allowed_actions: [let_in, shut]}
  - {id: CLERK, description: Keeps the books, allowed_actions: [finish, back]}
"""
SELECTING = """
inputs: {required: [payload], optional: [more]}
states:
  - {id: WORK, description: Work, initial: true}
  - {id: HELD, description: Somebody is asked}
  - {id: DONE, description: Done, terminal: true}
transitions:
  - {from: WORK, to: HELD, trigger: worked, description: All is done}
  - {from: HELD, to: DONE, trigger: released, description: Released}
steps:
  - {id: one, state: WORK, handler: aggregation_step, config: {sources: [payload], aggregation_type: merge}}
  - {id: two, state: WORK, handler: aggregation_step, config: {sources: [payload], aggregation_type: merge}}
  - {id: hold, state: HELD, handler: human_gate_step, config: {role: R, message: "Release?"}}
"""
# An older release took it: a human guard with the name of a gate step.
TWICE = """
states:
  - {id: OPEN, description: Two people are asked, initial: true}
  - {id: DONE, description: Done, terminal: true}
transitions:
  - {from: OPEN, to: DONE, trigger: finish, guards: [agreed, decided], description: Both agree}
guards:
  agreed: {type: human, check: the books agree, role: CLERK}
  decided: {check: all_steps_completed}
steps:
  - {id: agreed, state: OPEN, handler: human_gate_step, config: {role: GUARD, message: "Let it in?", quorum: 2}}
roles:
  - {id: GUARD, description: Guards the door, allowed_actions: [agreed]}
  - {id: CLERK, description: Keeps the books}
"""
SELFISH = """
outputs: {mine: {type: object, schema: {a: string}}}
states:
  - {id: WORK, description: Work, initial: true}
  - {id: DONE, description: Done, terminal: true}
transitions:
  - {from: WORK, to: DONE, trigger: worked, description: All is done}
steps:
  - id: publish_mine
    state: WORK
    handler: publish_step
    config: {subject: elsewhere.mine, event_type: elsewhere.mine}
"""
BROKEN = "states: []\n"
DEFINITIONS = {"doors": DOORS, "selecting": SELECTING, "selfish": SELFISH, "broken": BROKEN}


def definitions_folder(folder: Path) -> Path:
    """A folder with the example definitions and those above; `broken` breaks the language, `selfish` the allowlist."""
    copytree(SPECS, folder)
    for name, body in DEFINITIONS.items():
        (folder / f"{name}.yaml").write_text(HEAD.format(name=name) + body)
    return folder


class Refused(NamedTuple):
    """A failed call as the client sees it."""

    status: grpc.StatusCode
    code: str
    """The stable code at the beginning of the details."""
    details: str
    trailing: dict[str, Any]
    rich: RichError


class RichError(NamedTuple):
    """The google.rpc.Status of a refusal, read as any client of gRPC reads it; empty without one."""

    reason: str = ""
    named: Mapping[str, str] = MappingProxyType({})
    """Metadata of ErrorInfo."""
    violations: Sequence[tuple[str, str, str]] = ()
    """Field, reason and description of each."""
    retry_ms: int | None = None
    size: int = 0
    """Bytes of the trailers as they travel."""


class Refusal:
    """Its value is set when the block has ended."""

    refused: Refused

    def __getattr__(self, name: str) -> Any:
        return getattr(self.refused, name)


def rich_error(error: Any) -> RichError:
    """Read the details of a failed call. Raises ValueError where they differ from its status or text."""
    status = rpc_status.from_call(error)
    if status is None:
        return RichError()
    info, bad, retry = ErrorInfo(), BadRequest(), RetryInfo()
    unpacked = [detail.Unpack(kind) for detail in status.details for kind in (info, bad, retry)]
    assert sum(unpacked) == len(status.details) <= 3
    assert info.domain == "ceremony-engine"
    return RichError(
        info.reason,
        dict(info.metadata),
        [(one.field, one.reason, one.description) for one in bad.field_violations],
        retry.retry_delay.ToMilliseconds() if retry.HasField("retry_delay") else None,
        len(quote(error.details() or "")) + len(base64.b64encode(status.SerializeToString())),
    )


@contextlib.contextmanager
def refused(status: str, code: str, *, bare: bool = False) -> Iterator[Refusal]:
    """Expect the block's call to fail with this status and code, and without the text of an exception.

    Unless it is `bare`, as a test's own server sends it, its details agree with the text.
    """
    seen = Refusal()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        yield seen
    error = caught.value
    details = error.details() or ""
    found, _, _ = details.partition(": ")
    assert (error.code().name, found) == (status, code), details
    assert_no_raw_text(details)
    trailing = dict(error.trailing_metadata() or ())
    rich = rich_error(error)
    # specification 14.24
    assert bare or rich.reason == code.upper()
    assert bare or rich.retry_ms == (int(trailing["retry-after-ms"]) if "retry-after-ms" in trailing else None)
    seen.refused = Refused(error.code(), found, details, trailing, rich)


def assert_no_raw_text(details: str) -> None:
    """No exception's own text, class or traceback (specification 1.9)."""
    for trace in ("Traceback", "Error(", "Error:", "Exception", 'File "', "object at 0x"):
        assert trace not in details, details
