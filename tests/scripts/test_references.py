"""The references check finds each kind of planted mistake, and nothing in a sound repository or in this one."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts import references

ROOT = Path(__file__).resolve().parents[2]
SPECIFICATION = """# Specification

## 1. Terms

**1.1** A thing is a thing.

**1.2** Two things are two, by rule 1.1.

## 2. Things

**2.1** A thing `specs/one.yaml` stays.
"""
DESIGN = "# Design\n\n## 1. Idea\n\nSee [rule one](specification.md#1-terms) and `tables/one.py`.\n\n## 2. More\n"
# Apart from the numbers, so that the check does not take this file's examples for references.
CITING = "specification"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A small repository in which everything resolves."""
    files = {
        "docs/specification.md": SPECIFICATION,
        "docs/design.md": DESIGN,
        "specs/one.yaml": "",
        "tables/one.py": f'"""One, after {CITING} 1.2 and design {2}."""\n',
        "tests/test_one.py": f'"""{CITING} 1.1, 2.1."""\n\n# {CITING} 1.2\n',
        "scripts/run": f"# {CITING} 1.1\n",
    }
    for name, text in files.items():
        write(tmp_path, name, text)
    return tmp_path


def write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def found(root: Path) -> list[str]:
    return [str(finding) for finding in references.check(root, {})]


def test_a_sound_repository_has_no_findings(root: Path) -> None:
    assert not found(root)


def test_a_file_that_a_build_makes_need_not_be_there(root: Path) -> None:
    write(root, "build/log.txt", "")
    write(root, "scripts/sum.py", 'REPORT = "build/sum.json"\n')
    assert not found(root)


def test_this_repository_has_no_findings() -> None:
    assert not references.check(ROOT)


@pytest.mark.parametrize("place", ["tables/two.py", "specs/two.yaml", "docs/two.md", "README.md", "scripts/two"])
def test_a_reference_to_a_rule_that_is_not_there_is_found(root: Path, place: str) -> None:
    write(root, place, f"\n# {CITING} 1.1, 1.3\n")
    assert found(root) == [f"{place}:2: there is no {CITING} 1.3"]


def test_a_reference_to_a_section_that_is_not_there_is_found(root: Path) -> None:
    write(root, "tables/two.py", f"# design {3}\n")
    assert found(root) == [f"tables/two.py:1: there is no design {3}"]


def test_a_rule_that_the_specification_cites_itself_must_be_there(root: Path) -> None:
    write(root, "docs/specification.md", SPECIFICATION.replace("by rule 1.1", "by rules 1.1 and 1.4"))
    assert found(root) == ["docs/specification.md:7: there is no specification 1.4"]


@pytest.mark.parametrize("former", ["contract \N{SECTION SIGN}8", "Design 2", "Specification 1.1"])
def test_a_reference_in_another_form_is_found(root: Path, former: str) -> None:
    write(root, "tables/two.py", f"# see {former}\n")
    (finding,) = found(root)
    assert finding.startswith("tables/two.py:1: `")


def test_a_rule_that_no_test_names_is_found_with_its_line(root: Path) -> None:
    write(root, "tests/test_one.py", f"# {CITING} 1.1, 1.2\n")
    assert found(root) == ["docs/specification.md:11: no test names rule 2.1"]


def test_a_rule_without_a_test_may_have_a_reason(root: Path) -> None:
    write(root, "tests/test_one.py", f"# {CITING} 1.1, 1.2\n")
    assert not references.check(root, {"2.1": "nobody can see it"})


@pytest.mark.parametrize("rule", ["2.1", "9.9"])
def test_a_reason_that_serves_no_rule_is_found(root: Path, rule: str) -> None:
    (finding,) = references.check(root, {rule: "once there was one"})
    assert rule in finding.text


@pytest.mark.parametrize(("rule", "line"), [("1.3", 7), ("2.2", 7)])
def test_rules_are_numbered_one_after_the_other(root: Path, rule: str, line: int) -> None:
    write(root, "docs/specification.md", SPECIFICATION.replace("**1.2**", f"**{rule}**"))
    assert f"docs/specification.md:{line}: rule {rule} stands where 1.2 is next" in found(root)


def test_sections_are_numbered_one_after_the_other(root: Path) -> None:
    write(root, "docs/specification.md", SPECIFICATION.replace("## 2.", "## 3."))
    assert "docs/specification.md:9: section 3 stands where 2 is next" in found(root)


@pytest.mark.parametrize(
    ("link", "wrong"),
    [
        ("[a](gone.md)", "leads to no file"),
        ("[a](design.md#3-none)", "leads to no heading"),
        ("[a](#nowhere)", "leads to no heading"),
        ("![a](pictures/gone.svg)", "leads to no file"),
        ("[a\nb](../gone.py)", "leads to no file"),
    ],
)
def test_a_link_that_leads_nowhere_is_found(root: Path, link: str, wrong: str) -> None:
    write(root, "docs/two.md", f"# Two\n\n{link}\n")
    (finding,) = found(root)
    assert finding.startswith("docs/two.md:3: the link ") and finding.endswith(wrong)


@pytest.mark.parametrize(
    "text",
    [
        "[a](https://example.org/gone.md)",
        "[a](design.md#1-idea)",
        "[a](#what-it-is-and-why)\n\n## What it is, and why?",
        "`[a](gone.md)`",
        "```sh\n[a](gone.md) `tables/gone.py`\n```",
        "`../tables/one.py` `one.py` `tables/` `tables/<kind>.py` `tables/*.py` `.ceremony/gone.py` `a/b`",
    ],
)
def test_links_and_paths_that_resolve_are_no_findings(root: Path, text: str) -> None:
    write(root, "docs/two.md", text + "\n")
    assert not found(root)


@pytest.mark.parametrize("span", ["tables/gone.py", "tables/gone/", "gone.py", "old/folder/gone.md", "specs/one"])
def test_a_path_that_is_not_there_is_found(root: Path, span: str) -> None:
    write(root, "docs/two.md", f"\nSee `{span}`.\n")
    assert found(root) == [f"docs/two.md:2: there is no `{span}`"]


@pytest.mark.parametrize("place", ["tables/two.py", "specs/two.yaml", "scripts/two", "pyproject.toml"])
def test_a_path_in_code_that_is_not_there_is_found(root: Path, place: str) -> None:
    write(root, place, "# see tables/one.py and\n# tables/gone/two.py.\n")
    assert found(root) == [f"{place}:2: there is no `tables/gone/two.py`"]


def test_tests_may_make_up_paths(root: Path) -> None:
    write(root, "tests/test_two.py", '"""Writes tables/gone.py."""\n')
    assert not found(root)


def test_generated_code_and_archives_are_left_alone(root: Path) -> None:
    for name in ("tables/one_pb2.py", "tests/releases/0.1.0/old.md", ".venv/two.md", "build/two.md"):
        write(root, name, f"{CITING} 9.9 [a](gone.md) `tables/gone.py`\n")
    assert not found(root)


def test_the_exit_code_of_the_program_shows_a_finding(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    planted = references.Finding("docs/two.md", 2, "there is no `gone.py`")
    monkeypatch.setattr(references, "check", lambda _root: [planted])
    assert references.main() == 1
    assert capsys.readouterr().err == "references: docs/two.md:2: there is no `gone.py`\n"
    monkeypatch.setattr(references, "check", lambda _root: [])
    assert references.main() == 0
    assert "all resolve" in capsys.readouterr().out
