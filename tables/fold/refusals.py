"""The codes by which the fold refuses a command, and what each means to a caller."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class Refusal(StrEnum):
    """Classes of refusals, named as gRPC names them."""

    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    NOT_FOUND = "NOT_FOUND"
    ALREADY_EXISTS = "ALREADY_EXISTS"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    FAILED_PRECONDITION = "FAILED_PRECONDITION"


UNKNOWN_INSTANCE = "unknown_instance"
DEFINITION_UNKNOWN = "definition_unknown"
ALREADY_EXISTS = "already_exists"
INVALID_ID = "invalid_id"
INPUTS_INVALID = "inputs_invalid"
INPUTS_TOO_LARGE = "inputs_too_large"
INPUTS_TOO_DEEP = "inputs_too_deep"
INPUT_MISSING = "input_missing"
STEP_UNKNOWN = "step_unknown"
MALFORMED_COMMAND = "malformed_command"
ACTOR_REQUIRED = "actor_required"
ROLE_REQUIRED = "role_required"
ROLE_NOT_ALLOWED = "role_not_allowed"
ALREADY_ENDED = "already_ended"
PAUSED = "paused"
NOT_PAUSED = "not_paused"
TRIGGER_UNKNOWN = "trigger_unknown"
GUARDS_NOT_MET = "guards_not_met"
GATE_UNKNOWN = "gate_unknown"
GATE_NOT_OPEN = "gate_not_open"
STALE_VISIT = "stale_visit"
WRONG_STATE = "wrong_state"
STEP_IN_FLIGHT = "step_in_flight"
STEP_NOT_FAILED = "step_not_failed"
STEP_SELECTED = "step_selected"
STEP_NOT_PENDING = "step_not_pending"
ROW_FULL = "row_full"
RESTORE_INVALID = "restore_invalid"

CLASS_OF: Mapping[str, Refusal] = {
    UNKNOWN_INSTANCE: Refusal.NOT_FOUND,
    DEFINITION_UNKNOWN: Refusal.NOT_FOUND,
    ALREADY_EXISTS: Refusal.ALREADY_EXISTS,
    INVALID_ID: Refusal.INVALID_ARGUMENT,
    INPUTS_INVALID: Refusal.INVALID_ARGUMENT,
    INPUTS_TOO_LARGE: Refusal.INVALID_ARGUMENT,
    INPUTS_TOO_DEEP: Refusal.INVALID_ARGUMENT,
    INPUT_MISSING: Refusal.INVALID_ARGUMENT,
    STEP_UNKNOWN: Refusal.INVALID_ARGUMENT,
    MALFORMED_COMMAND: Refusal.INVALID_ARGUMENT,
    ACTOR_REQUIRED: Refusal.INVALID_ARGUMENT,
    ROLE_REQUIRED: Refusal.PERMISSION_DENIED,
    ROLE_NOT_ALLOWED: Refusal.PERMISSION_DENIED,
    ALREADY_ENDED: Refusal.FAILED_PRECONDITION,
    PAUSED: Refusal.FAILED_PRECONDITION,
    NOT_PAUSED: Refusal.FAILED_PRECONDITION,
    TRIGGER_UNKNOWN: Refusal.FAILED_PRECONDITION,
    GUARDS_NOT_MET: Refusal.FAILED_PRECONDITION,
    GATE_UNKNOWN: Refusal.NOT_FOUND,
    GATE_NOT_OPEN: Refusal.FAILED_PRECONDITION,
    STALE_VISIT: Refusal.FAILED_PRECONDITION,
    WRONG_STATE: Refusal.FAILED_PRECONDITION,
    STEP_IN_FLIGHT: Refusal.FAILED_PRECONDITION,
    STEP_NOT_FAILED: Refusal.FAILED_PRECONDITION,
    STEP_SELECTED: Refusal.FAILED_PRECONDITION,
    STEP_NOT_PENDING: Refusal.FAILED_PRECONDITION,
    ROW_FULL: Refusal.FAILED_PRECONDITION,
    RESTORE_INVALID: Refusal.INVALID_ARGUMENT,
}
"""Every code a Refused can carry."""
