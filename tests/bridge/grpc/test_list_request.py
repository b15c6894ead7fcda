"""The request of a list: its filters, and page tokens that belong to them."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from fleet.planning_ceremony.v1 import planning_ceremony_pb2 as pb

from bridge.grpc.list_request import MOST_INPUTS, is_of_old_form, next_page_token, query_of
from bridge.grpc.refusals import CallRefused
from streams.api import Query

PLACE = (-1_700_000_000_000, "c1:s1")


def request(**fields: Any) -> pb.ListPlanningCeremonyInstancesRequest:
    return pb.ListPlanningCeremonyInstancesRequest(**fields)


def test_every_filter_of_a_request_is_in_its_query() -> None:
    # specification 14.21
    asked = request(
        state_filter="OPEN",
        definition_filter="d",
        story_id="S",
        status_filter="RUNNING",
        input_filters={"team": "red", "size": "7"},
        created_from="2026-01-31T12:00:00Z",
        created_before="2026-01-31T13:00:00.5+01:00",
        correlation_filter="corr",
        gate_role_filter="CLERK",
        error_code_filter="timeout",
        subject_filter="a.b",
    )
    assert query_of(asked) == Query(
        state="OPEN",
        definition="d",
        story="S",
        status="RUNNING",
        correlation="corr",
        gate_role="CLERK",
        error_code="timeout",
        subject="a.b",
        inputs=(("size", "7"), ("team", "red")),
        created_from=1_769_860_800_000,
        created_before=1_769_860_800_500,
    )
    assert query_of(request()) == Query()


def test_a_page_token_leads_to_its_place_with_the_same_filters_whatever_the_limit() -> None:
    # specification 14.22
    token = next_page_token(request(state_filter="OPEN", limit=5), PLACE)
    assert query_of(request(state_filter="OPEN", limit=7, offset=2, page_token=token)).after == PLACE
    with pytest.raises(CallRefused, match="other filters") as refusal:
        query_of(request(state_filter="SENT", page_token=token))
    assert refusal.value.code == "page_token_invalid"


def test_inputs_of_a_token_may_come_in_any_order() -> None:
    # specification 14.22
    token = next_page_token(request(input_filters={"a": "1", "b": "2"}), PLACE)
    assert query_of(request(input_filters={"b": "2", "a": "1"}, page_token=token)).after == PLACE


@pytest.mark.parametrize(
    "token", ["x", "ü", "////", base64.urlsafe_b64encode(b"\x93").decode(), base64.urlsafe_b64encode(b"{}").decode()]
)
def test_a_token_that_is_none_is_refused(token: str) -> None:
    # specification 14.22
    with pytest.raises(CallRefused) as refusal:
        query_of(request(page_token=token))
    assert refusal.value.code == "page_token_invalid"


@pytest.mark.parametrize("place", [(5, "c:s"), (-(2**63), "c:s")])
def test_a_token_of_a_time_that_no_ceremony_has_is_refused(place: tuple[int, str]) -> None:
    asked = request()
    with pytest.raises(CallRefused):
        query_of(request(page_token=next_page_token(asked, place)))


@pytest.mark.parametrize("text", ["yesterday", "2026-13-01", "2" * 600])
def test_a_time_that_is_none_is_refused(text: str) -> None:
    # specification 14.21
    with pytest.raises(CallRefused) as refusal:
        query_of(request(created_from=text))
    assert refusal.value.code == "time_invalid"


def test_many_inputs_and_long_filters_are_refused() -> None:
    with pytest.raises(CallRefused) as refusal:
        query_of(request(input_filters={str(number): "x" for number in range(MOST_INPUTS + 1)}))
    assert refusal.value.code == "too_many_filters"
    for fields in ({"subject_filter": "x" * 600}, {"input_filters": {"a": "x" * 5_000}}, {"page_token": "x" * 2_000}):
        with pytest.raises(CallRefused) as refusal:
            query_of(request(**fields))
        assert refusal.value.code == "field_too_long"


def test_a_request_with_a_new_filter_or_a_token_is_not_of_the_old_form() -> None:
    # specification 14.22
    assert is_of_old_form(request(state_filter="A", status_filter="B", limit=3, offset=1))
    for fields in ({"subject_filter": "x"}, {"input_filters": {"a": "b"}}, {"page_token": "x"}, {"created_from": "x"}):
        assert not is_of_old_form(request(**fields))
