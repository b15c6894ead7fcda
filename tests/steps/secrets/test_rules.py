"""The rules: secrets of every kind are found, and ordinary proposals raise no alarm."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from ports.redaction import Detection
from steps.secrets.redactor import TextRedactor
from steps.secrets.rules import RULES
from tests.steps.secrets.ordinary import FAMILIES, ordinary
from tests.steps.secrets.planted import Planted, planted

REDACTOR = TextRedactor()
LEAST_KINDS = 40


def test_rules_have_plain_names_of_their_own() -> None:
    # specification 27.2
    names = [rule.name for rule in RULES]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z][a-z0-9_]*", name) for name in names)


def test_secrets_of_every_rule_are_planted() -> None:
    assert {one.rule for one in planted()} == {rule.name for rule in RULES}
    assert len(RULES) >= LEAST_KINDS


@pytest.mark.parametrize("seed", range(5))
def test_a_secret_is_replaced_and_the_text_around_it_stays(seed: int) -> None:
    # specification 27.1
    for one in planted(seed):
        found = REDACTOR.redact({"text": one.text})
        if not one.text.startswith("{"):  # JSON in a text is written anew
            assert found.value["text"] == one.text.replace(one.secret, f"[redacted:{one.rule}]"), one.rule
        assert one.secret not in json.dumps(found.value), one.rule
        assert [finding.rule for finding in found.findings] == [one.rule]


def _quoted(text: str) -> str:
    """Return the text as JSON in which every character is an escape."""
    return '{"a": "' + "".join(f"\\u{ord(character):04x}" for character in text) + '"}'


FORMS: dict[str, Callable[[str], Any]] = {
    "value": lambda text: text,
    "in a list": lambda text: [1, [text]],
    "key": lambda text: {text: 1},
    "JSON in a text": lambda text: json.dumps({"x": [text]}),
    "JSON in JSON in a text": lambda text: json.dumps({"x": json.dumps({"y": text})}),
    "part of JSON": lambda text: f"the answer was {json.dumps([text])} and more",
    "broken JSON": lambda text: json.dumps({"a": 1, "x": text})[:-1],
    "JSON with a key twice": lambda text: f'{{"a": {json.dumps(text)}, "a": 1}}',
    "JSON of escapes": _quoted,
    "part of JSON of escapes": lambda text: f"got {_quoted(text)}",
    "slashes escaped": lambda text: "see " + json.dumps(text).replace("/", "\\/"),
    "between lines": lambda text: f"first line\n{text}\nlast line",
    "beside quotes": lambda text: f'he said "{text}" and \\"{text}\\" again',
    "repr of Python": lambda text: repr([text, "'", '"']),
    "beside letters of other alphabets": lambda text: f"Schlüssel: {text} éß fin",
}


@pytest.mark.parametrize("form", FORMS)
def test_no_form_of_writing_hides_a_secret(form: str) -> None:
    # specification 27.3
    for one in planted():
        value = FORMS[form](one.text)
        found = REDACTOR.redact(value)
        assert one.rule in {finding.rule for finding in found.findings}, (one.rule, value)
        assert one.secret not in _everything(found.value), one.rule


def _everything(value: Any) -> str:
    """Return the value as JSON with all escapes undone, however deep."""
    text = json.dumps(value, ensure_ascii=False)
    for _ in range(8):
        text = re.sub(r"\\u([0-9a-f]{4})", lambda match: chr(int(match[1], 16)), text).replace("\\/", "/")
        text = text.replace("\\n", "\n").replace('\\"', '"').replace("\\\\", "\\")
    return text


def test_the_name_of_a_text_counts_for_rules_that_need_one() -> None:
    secret = next(one.secret for one in planted() if one.rule == "generic_password")
    for key in ("password", "DB_PASSWORD", "adminPasswd"):
        assert REDACTOR.redact({key: secret}).findings == (Detection(f"$.{key}", "generic_password"),)
    assert not REDACTOR.redact({"comment": secret}).findings


def test_a_thousand_ordinary_proposals_raise_no_alarm() -> None:
    # specification 27.2
    for number, text in enumerate(ordinary()):
        value = {"proposal": text}
        found = REDACTOR.redact(value)
        assert not found.findings, (FAMILIES[number % len(FAMILIES)].__name__, found.findings)
        assert found.value is value


def test_the_documentation_and_examples_of_the_engine_raise_no_alarm(pytestconfig: pytest.Config) -> None:
    for path in (*pytestconfig.rootpath.glob("docs/**/*.md"), *pytestconfig.rootpath.glob("specs/**/*.yaml")):
        assert not REDACTOR.redact(path.read_text("utf-8")).findings, path


@pytest.mark.parametrize(
    "text",
    [
        "postgres://app:***@db/x",
        "postgres://app:${DB_PASSWORD}@db/x",
        "postgres://user:password@localhost/x",
        "password: ${{ secrets.PASSWORD_2 }}",
        "password=<your password 1>",
        "token = generate_token32(user2)",
        "token: 550e8400-e29b-41d4-a716-446655440000",
        "api_key = config.v2.api_key2",
        "secret: arn:aws:secretsmanager:eu-west-1:123456789012:secret:prod/db-Ab12Cd",
        "password: see /run/secrets/db_password1",
        "-----BEGIN PRIVATE KEY-----",
        "Authorization: Bearer authentication-of-the-second-kind",
    ],
)
def test_a_placeholder_is_no_secret(text: str) -> None:
    assert not REDACTOR.redact({"text": text}).findings


def test_a_finding_never_shows_the_secret() -> None:
    # specification 27.4
    for one in planted():
        for finding in REDACTOR.redact({one.text: {"a": one.text}}).findings:
            assert one.secret not in str(finding)
            assert one.secret not in str(finding).encode().decode("unicode_escape")


def test_planted_secrets_differ_with_the_seed() -> None:
    def secrets(seed: int) -> list[Planted]:
        return list(planted(seed))

    assert secrets(1) == secrets(1)
    assert not {one.secret for one in secrets(1)} & {one.secret for one in secrets(2)}
