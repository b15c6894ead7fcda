"""The benchmark of the redaction measures every case, and its records are what their names say."""

from __future__ import annotations

from steps.secrets.redactor import TextRedactor
from streams.envelope import redacted_envelope
from tests.benchmarks import redaction


def test_each_case_is_measured() -> None:
    found = redaction.measure(repetitions=1, calls=2)
    assert found.keys() == redaction.cases().keys()
    assert all(size > 0 and micros > 0 for size, micros in found.values())


def test_only_the_case_with_a_secret_has_one() -> None:
    redactor = TextRedactor()
    clean = redaction.event(redaction.MERGED)
    assert not redactor.suspicious(clean)
    leaky = redaction.event({"proposal": redaction.SECRET})
    assert b"[redacted:aws_access_key_id]" in redacted_envelope(leaky, redactor)
