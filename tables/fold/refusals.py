"""The codes of refused commands, and the class of each for a caller."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class RefusalClass(StrEnum):
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
REQUEST_ID_REUSED = "request_id_reused"
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

# Every code that a Refused can carry.
CLASS_OF: Mapping[str, RefusalClass] = {
    UNKNOWN_INSTANCE: RefusalClass.NOT_FOUND,
    DEFINITION_UNKNOWN: RefusalClass.NOT_FOUND,
    ALREADY_EXISTS: RefusalClass.ALREADY_EXISTS,
    INVALID_ID: RefusalClass.INVALID_ARGUMENT,
    INPUTS_INVALID: RefusalClass.INVALID_ARGUMENT,
    INPUTS_TOO_LARGE: RefusalClass.INVALID_ARGUMENT,
    INPUTS_TOO_DEEP: RefusalClass.INVALID_ARGUMENT,
    INPUT_MISSING: RefusalClass.INVALID_ARGUMENT,
    STEP_UNKNOWN: RefusalClass.INVALID_ARGUMENT,
    MALFORMED_COMMAND: RefusalClass.INVALID_ARGUMENT,
    REQUEST_ID_REUSED: RefusalClass.INVALID_ARGUMENT,
    ACTOR_REQUIRED: RefusalClass.INVALID_ARGUMENT,
    ROLE_REQUIRED: RefusalClass.PERMISSION_DENIED,
    ROLE_NOT_ALLOWED: RefusalClass.PERMISSION_DENIED,
    ALREADY_ENDED: RefusalClass.FAILED_PRECONDITION,
    PAUSED: RefusalClass.FAILED_PRECONDITION,
    NOT_PAUSED: RefusalClass.FAILED_PRECONDITION,
    TRIGGER_UNKNOWN: RefusalClass.FAILED_PRECONDITION,
    GUARDS_NOT_MET: RefusalClass.FAILED_PRECONDITION,
    GATE_UNKNOWN: RefusalClass.NOT_FOUND,
    GATE_NOT_OPEN: RefusalClass.FAILED_PRECONDITION,
    STALE_VISIT: RefusalClass.FAILED_PRECONDITION,
    WRONG_STATE: RefusalClass.FAILED_PRECONDITION,
    STEP_IN_FLIGHT: RefusalClass.FAILED_PRECONDITION,
    STEP_NOT_FAILED: RefusalClass.FAILED_PRECONDITION,
    STEP_SELECTED: RefusalClass.FAILED_PRECONDITION,
    STEP_NOT_PENDING: RefusalClass.FAILED_PRECONDITION,
    ROW_FULL: RefusalClass.FAILED_PRECONDITION,
    RESTORE_INVALID: RefusalClass.INVALID_ARGUMENT,
}
