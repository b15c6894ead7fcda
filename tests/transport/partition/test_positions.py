"""The position row is read back as written, and refused when it is of a newer release or something else."""

from __future__ import annotations

import json

import pytest

from ports.log import LogFailed, Record
from streams.transport.partition.backend import PositionRow
from streams.transport.partition.positions import FORMAT, checksum, decode_position, encode_position

ROW = PositionRow(next=7, partitions=4, timestamp=1_700_000_000_000, checksum=123, fold=4)


def test_a_position_row_is_read_back_as_written() -> None:
    assert decode_position(encode_position(ROW)) == ROW


def test_a_newer_format_is_refused() -> None:
    # specification 24.1
    newer = json.loads(encode_position(ROW)) | {"format": FORMAT + 1}
    with pytest.raises(LogFailed, match="format_too_new"):
        decode_position(json.dumps(newer).encode())


def test_a_row_of_release_0_1_0_has_no_fold() -> None:
    row = decode_position(b'{"format":1,"next":7,"partitions":4,"timestamp":1700000000000,"checksum":123}')
    assert row == ROW._replace(fold=0)


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b'{"format": 1}', b'{"next": "7"}'])
def test_any_other_value_is_refused(raw: bytes) -> None:
    with pytest.raises(LogFailed, match="position_row_unreadable"):
        decode_position(raw)


def test_the_checksum_depends_on_where_the_key_ends() -> None:
    def record(key: bytes | None, value: bytes | None) -> Record:
        return Record("t", 0, 0, 0, key, value)

    assert checksum(record(b"ab", b"c")) != checksum(record(b"a", b"bc"))
    assert checksum(record(b"a", b"b")) == checksum(record(b"a", b"b")._replace(offset=9, timestamp=9))
    assert checksum(record(None, None)) == checksum(record(b"", b""))
