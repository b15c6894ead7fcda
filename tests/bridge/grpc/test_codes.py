"""Statuses of error codes, ranges of pages, and unexpected errors, without a server."""

from __future__ import annotations

import grpc
import pytest

from bridge.grpc.refusals import STATUS_OF, page, refusal_of
from ports.log import RecordTooLarge
from streams.api import Unavailable
from tables.fold import refusals


def test_every_code_of_the_fold_has_a_status() -> None:
    """Each constant in the table of refusals has a class, and the status follows from it."""
    # specification 1.9, 14.2
    codes = {value for name, value in vars(refusals).items() if name.isupper() and isinstance(value, str)}
    statuses = {code: STATUS_OF[code].name for code in codes}
    assert statuses == {code: str(kind) for code, kind in refusals.CLASS_OF.items()}
    assert set(STATUS_OF) - codes == {"fold_failed"}


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("unknown_instance", "NOT_FOUND"),
        ("definition_unknown", "NOT_FOUND"),
        ("already_exists", "ALREADY_EXISTS"),
        ("role_required", "PERMISSION_DENIED"),
        ("role_not_allowed", "PERMISSION_DENIED"),
        ("gate_unknown", "NOT_FOUND"),
        ("step_unknown", "INVALID_ARGUMENT"),
        ("trigger_unknown", "FAILED_PRECONDITION"),
        ("stale_visit", "FAILED_PRECONDITION"),
        ("already_ended", "FAILED_PRECONDITION"),
    ],
)
def test_codes_have_the_specified_statuses(code: str, status: str) -> None:
    # specification 14.2
    assert STATUS_OF[code].name == status


@pytest.mark.parametrize(
    ("given", "expected"),
    [((0, 0), (100, 0)), ((-1, -1), (100, 0)), ((1000, 3), (1000, 3)), ((1001, 0), (1000, 0)), ((1, 0), (1, 0))],
)
def test_limit_and_offset_of_a_page_stay_in_range(given: tuple[int, int], expected: tuple[int, int]) -> None:
    # specification 14.8
    assert page(*given) == expected


def test_the_text_of_an_unexpected_error_stays_inside() -> None:
    # specification 1.9, 14.2
    refusal = refusal_of(KeyError("a secret path /etc/x"))
    assert (refusal.status, refusal.code) == (grpc.StatusCode.INTERNAL, "internal")
    assert "secret" not in refusal.message


def test_unavailable_carries_a_retry_hint() -> None:
    # specification 14.3
    refusal = refusal_of(Unavailable("moving", retry_after_seconds=2.5))
    assert (refusal.status, refusal.code, refusal.retry_after_seconds) == (
        grpc.StatusCode.UNAVAILABLE,
        "unavailable",
        2.5,
    )


def test_a_record_that_is_too_large_is_an_invalid_argument() -> None:
    # specification 20.2
    refusal = refusal_of(RecordTooLarge("5 MiB"))
    assert (refusal.status, refusal.code) == (grpc.StatusCode.INVALID_ARGUMENT, "request_too_large")
