"""The redactor: its result is clean and stays as it is, JSON stays JSON, and its time is linear."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ports.redaction import Detection
from steps.secrets.readings import plain_readings, readings
from steps.secrets.redactor import TextRedactor
from steps.secrets.rules import RULES
from steps.secrets.search import RuleSearch, SecretRule
from tests.steps.secrets.ordinary import ordinary
from tests.steps.secrets.planted import planted

REDACTOR = TextRedactor()
SECRETS = [one.text for one in planted()]
ORDINARY = list(ordinary(48))
MADE = [*SECRETS, *(text[:2000] for text in ORDINARY)]


def _made(number: int) -> str:
    return MADE[number]


TEXTS = st.lists(st.integers(0, len(MADE) - 1).map(_made) | st.text(), max_size=4).map(" ".join)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS | TEXTS.map(json.dumps),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


@given(VALUES)
def test_a_redacted_value_is_clean_and_stays_as_it_is(value: Any) -> None:
    # specification 27.5
    once = REDACTOR.redact(value).value
    again = REDACTOR.redact(once)
    assert again.findings == ()
    assert again.value is once


@given(TEXTS)
def test_a_redacted_text_is_clean_and_stays_as_it_is(text: str) -> None:
    once = REDACTOR.text(text)
    assert REDACTOR.text(once) == once


@given(VALUES)
def test_the_first_look_never_misses_a_finding(value: Any) -> None:
    if not REDACTOR.suspicious(msgspec.json.encode(value)):
        assert REDACTOR._value(value, "$", "", []) == value


@given(VALUES)
def test_shape_and_numbers_stay(value: Any) -> None:
    def shape(one: Any) -> Any:
        if isinstance(one, dict):
            return [shape(item) for item in one.values()]
        return [shape(item) for item in one] if isinstance(one, list) else "" if isinstance(one, str) else one

    assert shape(REDACTOR.redact(value).value) == shape(value)


def test_json_in_a_text_stays_json_with_its_numbers() -> None:
    secret = next(planted()).secret
    text = '{"b": 12345678901234567890123, "a": 0.1, "é": ["' + secret + '"], "": {}}'
    redacted = REDACTOR.text(text)
    assert json.loads(redacted) == json.loads(text.replace(secret, "[redacted:aws_access_key_id]"))
    assert "12345678901234567890123" in redacted


def test_keys_that_become_equal_are_kept_apart() -> None:
    first, second = (one.secret for one in list(planted())[:2])
    found = REDACTOR.redact({first: 1, second: 2, "[redacted:aws_access_key_id]": 3})
    assert sorted(found.value.values()) == [1, 2, 3]
    assert len(found.findings) == 2


def test_paths_lead_to_the_finding() -> None:
    # specification 27.4
    secret = next(planted()).secret
    value = {"a": [{"b c": secret}, json.dumps({"d": [secret]})], secret: {"e": secret}}
    assert REDACTOR.redact(value).findings == (
        Detection('$.a[0]["b c"]', "aws_access_key_id"),
        Detection("$.a[1].d[0]", "aws_access_key_id"),
        Detection('$["[redacted:aws_access_key_id]"]', "aws_access_key_id"),
        Detection('$["[redacted:aws_access_key_id]"].e', "aws_access_key_id"),
    )


def test_a_marker_hides_no_secret_beside_it() -> None:
    secret = next(planted()).secret
    text = f"[redacted:jwt] {secret}[redacted:jwt]{secret}"
    marker = "[redacted:aws_access_key_id]"
    assert REDACTOR.text(text) == f"[redacted:jwt] {marker}[redacted:jwt]{marker}"


def test_a_span_is_widened_to_whole_characters() -> None:
    redactor = TextRedactor(RuleSearch([SecretRule("three_bytes", rb"key:([^ ]{3})")]))
    assert redactor.text("key:aéé tail") == "[redacted:three_bytes]é tail".replace("[", "key:[", 1)
    assert redactor.text("key:éé tail") == "key:[redacted:three_bytes] tail"


def test_a_text_that_never_becomes_clean_is_replaced_as_a_whole() -> None:
    redactor = TextRedactor(RuleSearch([SecretRule("one_letter", rb"(z)$")]))
    assert redactor.text("z" * 20) == "[redacted:one_letter]"


def test_a_lone_surrogate_hides_nothing() -> None:
    secret = next(planted()).secret
    assert REDACTOR.redact({"a": f"\ud800 {secret}"}).value == {"a": "\ud800 [redacted:aws_access_key_id]"}


def test_encoded_json_gives_the_value_and_the_paths_or_nothing() -> None:
    secret = next(planted()).secret
    assert REDACTOR.encoded(b'{"a": [1, 12345678901234567890123], "b": "token"}') is None
    assert REDACTOR.encoded(b'{"password": "ordinary-words-7"}') is None
    found = REDACTOR.encoded(b'{"a": [12345678901234567890123, "%s"]}' % secret.encode())
    assert found == ({"a": [12345678901234567890123, "[redacted:aws_access_key_id]"]}, ["$.a[1]"])


def test_parts_of_a_value_that_are_clean_are_not_walked() -> None:
    secret = next(planted()).secret
    tasks = [{"title": f"task {number}", "notes": ["a", "b", {"c": ["d"] * 10}]} for number in range(200)]
    value = {"tasks": tasks, "note": {"text": secret}}
    search = RuleSearch(RULES)
    found = TextRedactor(search).redact(value)
    assert found.value == {"tasks": tasks, "note": {"text": "[redacted:aws_access_key_id]"}}
    assert found.value["tasks"] is tasks
    assert search.looked_at < 3 * len(msgspec.json.encode(value))


@pytest.mark.parametrize("nested", [20, 450, 800])
def test_a_secret_is_found_however_deep(nested: int) -> None:
    secret = next(planted()).secret
    value: Any = {"x": [secret]}
    for _ in range(nested):
        value = [value]
    assert secret not in str(REDACTOR.redact(value).value)
    found = REDACTOR.encoded(b"[" * nested + b'{"x": "%s"}' % secret.encode() + b"]" * nested)
    assert found is not None
    assert secret not in str(found[0])
    assert secret not in REDACTOR.text("[" * nested + f'"{secret}"' + "]" * nested)


def test_bytes_are_redacted_whatever_they_are() -> None:
    secret = next(planted()).secret.encode()
    assert REDACTOR.data(b"\xff\x00plain") == b"\xff\x00plain"
    assert REDACTOR.data(b"\xff\x00 " + secret + b" \xc3") == b"\xff\x00 [redacted:aws_access_key_id] \xc3"
    assert REDACTOR.data(b'{"a":"' + secret + b'"}') == b'{"a":"[redacted:aws_access_key_id]"}'


def test_a_clean_value_is_returned_itself() -> None:
    value = {"a": ["b", {"password": None}], "c": 1.5}
    assert REDACTOR.redact(value).value is value
    assert REDACTOR.redact(("a", "b")).value == ("a", "b")


# -- readings

ESCAPED = st.text(alphabet='ab\\"/nu0041\n\x00é😀', max_size=40)


@given(ESCAPED)
def test_both_ways_of_reading_agree(text: str) -> None:
    data = text.encode()
    fast, exact = list(plain_readings(data)), [reading.text for reading in readings(data)]
    assert [*fast, *[fast[-1]] * (len(exact) - len(fast))] == exact


@given(ESCAPED, st.integers(1, 3))
def test_a_reading_undoes_json_and_knows_the_origin_of_each_byte(text: str, levels: int) -> None:
    outer = text
    for _ in range(levels):
        outer = json.dumps(outer)[1:-1]
    reading = [*readings(outer.encode())][: levels + 1][-1]
    if len([*readings(outer.encode())]) > levels:
        assert reading.text == text.encode()
    origins = [reading.origin(at, at + 1) for at in range(len(reading.text))]
    assert all(0 <= start < end <= len(outer.encode()) for start, end in origins)
    assert origins == sorted(origins)


# -- time


@pytest.mark.parametrize("unit", [*SECRETS[:4], '\\u0041\\n\\"', "password: ", "{[", "-----BEGIN PRIVATE KEY-----\n"])
def test_twice_the_bytes_take_twice_the_work(unit: str) -> None:
    # specification 27.6
    def work(count: int) -> int:
        search = RuleSearch(RULES)
        TextRedactor(search).redact({"a": unit * count})
        return search.looked_at

    small, large = work(200), work(400)
    assert large <= 2.2 * small
    assert large <= 60 * len(unit) * 400
