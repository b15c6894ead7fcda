"""Fetches and their answers byte by byte as aiokafka's own, and what is told of an answer that was cut off."""

from __future__ import annotations

from io import BytesIO

import pytest
from aiokafka.protocol.fetch import FetchRequest, FetchRequest_v10, FetchRequest_v11, FetchResponse_v11

from streams.transport.kafka.wire import packed

TOPICS = [("fleet.commands", [(0, 1, 2), (11, 2**40, 5 * 1024 * 1024)]), ("fleet.steps.\u00fc", [(3, 0, 1)])]
REQUESTS = {
    "two topics": FetchRequest(20, 1, 52_428_800, 1, TOPICS),
    "in a rack": FetchRequest(500, 7, 100, 0, TOPICS, rack_id="b"),
    "nothing": FetchRequest(20, 1, 100, 1, []),
}
RECORDS = bytes(range(256))
ANSWERS = {
    "nothing": FetchResponse_v11(0, 0, 0, []),
    "records, none, and null": FetchResponse_v11(
        7,
        3,
        2,
        [
            ("fleet.commands", [(0, 0, 10, 9, 1, [], -1, RECORDS), (1, 1, -1, -1, -1, None, 4, None)]),
            ("fleet.steps.\u00fc", [(11, 0, 2**40, 2**40, 0, [], -1, b"")]),
        ],
    ),
    "aborted transactions": FetchResponse_v11(
        0, 0, 0, [("changelog", [(2, 0, 9, 9, 0, [(1_000, 4), (1_001, 2**33)], -1, RECORDS)])]
    ),
}


@pytest.mark.parametrize("name", REQUESTS)
@pytest.mark.parametrize("version", [FetchRequest_v10, FetchRequest_v11])
def test_a_request_is_that_of_aiokafka(name: str, version: type[FetchRequest_v11]) -> None:
    request = REQUESTS[name]
    assert packed(request).topics == request.topics
    assert packed(request).build(version).encode() == request.build(version).encode()


def test_version_11_is_the_last() -> None:
    """A later one would be asked for, and packed field by field again."""
    ours = packed(REQUESTS["two topics"]).prepare({1: (4, 99)})
    assert ours.API_VERSION == 11
    assert ours.encode() == REQUESTS["two topics"].prepare({1: (4, 99)}).encode()


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_is_read_as_by_aiokafka(name: str) -> None:
    reader = packed(REQUESTS["two topics"]).build(FetchRequest_v11).RESPONSE_TYPE
    frame = b"head" + ANSWERS[name].encode()
    data, theirs = BytesIO(frame), BytesIO(frame)
    data.seek(4)
    theirs.seek(4)
    answer = reader.decode(data)
    assert answer == FetchResponse_v11.decode(theirs) == ANSWERS[name]
    assert answer.API_VERSION == 11


def test_an_answer_that_was_cut_off_is_refused() -> None:
    reader = packed(REQUESTS["two topics"]).build(FetchRequest_v11).RESPONSE_TYPE
    with pytest.raises(ValueError, match="fetch answer cut off: 255 of 256 bytes of partition 2"):
        reader.decode(ANSWERS["aborted transactions"].encode()[:-1])
