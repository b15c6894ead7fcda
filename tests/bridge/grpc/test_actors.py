"""Names of actors and roles are normalised before they reach the log."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.grpc.actors import actor_key, normal_name
from bridge.grpc.refusals import LONGEST_NAME, CallRefused


@pytest.mark.parametrize(
    ("given_name", "name", "key"),
    [
        ("petra", "petra", "petra"),
        ("  Petra\t", "Petra", "petra"),
        ("Rene\u0301", "Ren\u00e9", "ren\u00e9"),
        ("\u00a0STRASSE\n", "STRASSE", "strasse"),
        ("Stra\u00dfe", "Stra\u00dfe", "strasse"),
        ("anna maria", "anna maria", "anna maria"),
        ("\u039f\u03a3", "\u039f\u03a3", "\u03bf\u03c3"),
    ],
)
def test_a_name_is_trimmed_and_composed_and_its_key_is_case_folded(given_name: str, name: str, key: str) -> None:
    # specification 13.15
    assert (normal_name("actor", given_name), actor_key(normal_name("actor", given_name))) == (name, key)


@pytest.mark.parametrize(
    "letter", ["\u0000", "\u0007", "\n", "\u200b", "\u202e", "\u00ad", "\ufeff", "\U000e0041", "\u0378", "\uffff"]
)
def test_a_name_with_a_hidden_or_unassigned_character_is_refused(letter: str) -> None:
    # specification 13.15
    with pytest.raises(CallRefused) as caught:
        normal_name("actor", f"pe{letter}tra")
    assert caught.value.code == "actor_invalid"
    assert f"U+{ord(letter):04X}" in caught.value.message and letter not in caught.value.message


def test_a_name_that_grows_too_long_when_composed_is_refused() -> None:
    """Some letters have no composed form and become two."""
    assert normal_name("actor", "p" * LONGEST_NAME) == "p" * LONGEST_NAME
    with pytest.raises(CallRefused, match="field_too_long"):
        normal_name("actor", "\ufb2c" * LONGEST_NAME)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=40))
def test_a_normal_name_stays_as_it_is_and_keys_of_keys_too(text: str) -> None:
    try:
        name = normal_name("actor", text)
    except CallRefused:
        return
    assert normal_name("actor", name) == name
    assert unicodedata.is_normalized("NFC", actor_key(name))
    assert actor_key(actor_key(name)) == actor_key(name)
