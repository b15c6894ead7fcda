"""Raw prompts: 32 characters of a prompt are found however they are written, and shorter parts are not."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ports.redaction import Detection
from steps.secrets.prompts import WINDOW, PromptSearch, searchable
from steps.secrets.redactor import TextRedactor
from steps.secrets.search import entropy

REDACTOR = TextRedactor()
PROMPT = (
    "Review the story «${inputs.title}» as a careful architect.\n  List each risk\tand the owner of it.\n"
    "${x} Then stop, please."
)
RAW = "[redacted:raw_prompt]"


def redacted(text: str, *prompts: str) -> str:
    return REDACTOR.of(prompts or (PROMPT,)).text(text)


def test_a_prompt_is_cut_at_its_placeholders_and_short_parts_are_not_searched_for() -> None:
    # specification 27.7
    part = "» as a careful architect. List each risk and the owner of it. "
    assert searchable([PROMPT]) == [part]
    assert searchable(["x" * (WINDOW - 1), "  " + "y" * WINDOW + "\n", "$${z}" + "z" * WINDOW]) == [
        "y" * WINDOW,
        "z" * WINDOW,
    ]


@pytest.mark.parametrize("begin", range(20))
@pytest.mark.parametrize("length", [WINDOW - 1, WINDOW, WINDOW + 5])
def test_any_32_characters_of_a_prompt_are_found_and_31_are_not(begin: int, length: int) -> None:
    # specification 27.7
    part = searchable([PROMPT])[0]
    text = part[begin : begin + length]
    expected = text if length < WINDOW else RAW
    assert redacted(f"They wrote:#{text}#") == f"They wrote:#{expected}#"


@pytest.mark.parametrize("space", ["  ", "\n", "\r\n\t", "\u00a0", "\u2003 \u3000", " \n \n "])
def test_white_space_is_folded(space: str) -> None:
    text = "a careful architect. List each risk and".replace(" ", space)
    assert redacted(f"[{text}]") == f"[{RAW}]"


def test_a_prompt_inside_json_and_json_inside_it_are_found() -> None:
    text = json.dumps({"a": [json.dumps("see: as a careful architect.\nList each risk and the owner, she said")]})
    found = REDACTOR.of((PROMPT,)).redact({"x": text})
    assert found.findings == (Detection("$.x.a[0]", "raw_prompt"),)
    assert json.loads(found.value["x"]) == {"a": [f'"see:{RAW}, she said"']}


def test_the_form_of_an_answer_that_a_prompt_gives_is_no_raw_prompt() -> None:
    form = '{"title": "", "description": "", "estimated_hours": 0}'
    answer = json.dumps({"title": "", "description": "", "estimated_hours": 0})
    redactor = REDACTOR.of((f"Answer as {form}",))
    assert redactor.redact({"title": "", "description": "", "estimated_hours": 0}).findings == ()
    assert redactor.text(answer) == answer
    assert redactor.text(f"so: {answer}") == "so:[redacted:raw_prompt]"


def test_prompts_and_secrets_are_found_together() -> None:
    secret = "AKIA" + "Q3" * 8
    text = f"as a careful architect. List each risk {secret} as a careful architect. List each risk"
    assert redacted(text) == f"{RAW}[redacted:aws_access_key_id]{RAW}"


def test_a_redactor_without_searchable_prompts_is_the_plain_one() -> None:
    assert REDACTOR.of(()) is REDACTOR
    assert REDACTOR.of(("short",)) is REDACTOR
    assert REDACTOR.of((PROMPT,)) is REDACTOR.of((PROMPT,))


@given(st.text(alphabet="aé \n😀", min_size=WINDOW, max_size=90), st.integers(0, 60), st.text("aé 😀b", max_size=40))
def test_what_remains_holds_no_32_characters_of_a_prompt(prompt: str, begin: int, other: str) -> None:
    text = other + prompt[begin:] + other
    folded = " ".join(redacted(text, prompt).split())
    for part in searchable([prompt]):
        assert not any(part[at : at + WINDOW] in folded for at in range(len(part) - WINDOW + 1))
    assert redacted(folded, prompt) == folded


@given(st.text(alphabet="ab é", min_size=60, max_size=200), st.text(alphabet="ab é", max_size=200))
def test_a_search_finds_what_a_comparison_of_all_windows_finds(prompt: str, text: str) -> None:
    parts = searchable([prompt])
    folded = " ".join(text.split(" "))
    windows = {part[at : at + WINDOW] for part in parts for at in range(len(part) - WINDOW + 1)}
    folded = " ".join(folded.split())
    expected = any(folded[at : at + WINDOW] in windows for at in range(len(folded)))
    if parts:
        search = PromptSearch(parts)
        assert bool(list(search.spans(folded.encode()))) == expected
        assert search.hits(folded.encode()) or not expected


def test_the_work_of_a_search_is_linear() -> None:
    def work(count: int) -> int:
        search = PromptSearch(searchable(["ab " * 100]))
        list(search.spans(b"ab " * count))
        return search.looked_at

    assert work(4000) <= 2.1 * work(2000)


def test_entropy_is_counted_in_bits_per_byte() -> None:
    assert entropy(b"") == 0
    assert entropy(b"aaaa") == 0
    assert entropy(b"abcd") == 2


def test_learnt_prompts_are_found_by_exits_that_know_no_definition() -> None:
    # specification 27.7
    redactor = TextRedactor()
    prompts = [f"Prompt number {number} of {number * 7} asks for {number * 31} estimates." for number in range(40)]
    for count, prompt in enumerate(prompts, start=1):
        assert redactor.text(prompt) == prompt
        redactor.learn((prompt,))
        redactor.learn((prompt,))
        assert all(RAW in redactor.text(f"- {known} -") for known in prompts[:count])
    assert redactor.of((PROMPT,)).text(prompts[0]) == prompts[0]


def test_the_oldest_learnt_prompts_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steps.secrets.prompts.KNOWN_CHARACTERS", 1000)
    redactor = TextRedactor()
    prompts = [chr(ord("a") + number) * 300 for number in range(20)]
    for prompt in prompts:
        redactor.learn((prompt,))
    assert redactor.text(prompts[-1]) == RAW
    assert redactor.text(prompts[0]) == prompts[0]
