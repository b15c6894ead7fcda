"""Checks references: rules and sections that code and docs cite, links, paths, and rules without a test.

A reference reads `specification` or `design` in lower case, a space and a number; further numbers may follow after
commas. It must lead to a rule of docs/specification.md or to a section of docs/design.md. Every rule of the
specification must be cited by a test, or stand in UNTESTED with the reason.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

# Rules that no test cites, each with the reason.
UNTESTED: Mapping[str, str] = {}

SPECIFICATION, DESIGN = "docs/specification.md", "docs/design.md"
SUFFIXES = frozenset({".py", ".md", ".yaml", ".yml", ".json", ".proto", ".toml", ".cfg", ".sh"})
# Files of this folder are read whatever their suffix.
SHELL_SCRIPTS = "scripts"
TESTS = "tests"
SKIPPED_FOLDERS = frozenset({"__pycache__", "build", "dist", "node_modules"})
# Copies of former releases keep the references of their time.
ARCHIVES = ("tests/releases/",)
CITING = re.compile(r"\b(?P<document>specification|design) (?P<numbers>\d+(?:\.\d+)?(?:, \d+(?:\.\d+)?)*)")
# How the specification cites its own rules.
WITHIN = re.compile(r"\brules? (\d+\.\d+(?:(?:, | and | to )\d+\.\d+)*)")
FORMER = re.compile(r"§|\b(?:Specification|Design) \d|\bcontract\.md\b")
RULE = re.compile(r"^\*\*(\d+)\.(\d+)\*\* ")
SECTION = re.compile(r"^## (\d+)\. ")
CODE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\[[^\[\]]*\]\(([^()\s]+)(?:\s+\"[^\"]*\")?\)")
REMOTE = re.compile(r"[a-z][a-z0-9+.-]*:|//")
# A code span that may be a path: no placeholder, no wildcard, no white space, not hidden.
PATH = re.compile(r"[\w-][\w.-]*(?:/[\w.-]+)*/?")
FILE_NAME = re.compile(r"[\w.-]+\.(?:py|md|svg|proto)")


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """One thing that does not resolve."""

    file: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.text}"


class Source(NamedTuple):
    """One file of the repository."""

    name: str
    """Path from the root, with slashes."""
    text: str

    @property
    def lines(self) -> Iterator[tuple[int, str]]:
        return enumerate(self.text.splitlines(), 1)

    def line_at(self, position: int) -> int:
        return self.text.count("\n", 0, position) + 1


class Citation(NamedTuple):
    """One number that a file cites."""

    source: Source
    line: int
    document: str
    number: str


def sources(root: Path) -> list[Source]:
    """Every text file that may cite something, in order of name."""
    return [Source(_name(path, root), _text(path)) for path in _files(root) if _is_read(path, root)]


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name in SKIPPED_FOLDERS or path.name.endswith(".egg-info"):
            continue
        if path.is_dir():
            yield from _files(path)
        else:
            yield path


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def _is_read(path: Path, root: Path) -> bool:
    if _name(path, root).startswith(ARCHIVES) or "_pb2" in path.name:
        return False
    return path.suffix in SUFFIXES or path.parent == root / SHELL_SCRIPTS


# -- rules and sections


def rules(specification: Source) -> dict[str, int]:
    """Number of each rule → its line."""
    found = {}
    for line, text in specification.lines:
        if match := RULE.match(text):
            found[f"{match[1]}.{match[2]}"] = line
    return found


def sections(document: Source) -> dict[str, int]:
    """Number of each section → its line."""
    return {match[1]: line for line, text in document.lines if (match := SECTION.match(text))}


def misnumbered(specification: Source) -> Iterator[Finding]:
    """Sections count from 1, and so do the rules of each."""
    section = rule = 0
    for line, text in specification.lines:
        if match := SECTION.match(text):
            section, rule = section + 1, 0
            if int(match[1]) != section:
                yield Finding(specification.name, line, f"section {match[1]} stands where {section} is next")
        elif match := RULE.match(text):
            rule += 1
            if (int(match[1]), int(match[2])) != (section, rule):
                found = f"{match[1]}.{match[2]}"
                yield Finding(specification.name, line, f"rule {found} stands where {section}.{rule} is next")


def citations(source: Source) -> Iterator[Citation]:
    """Every number of a rule or section that a file cites."""
    for line, text in source.lines:
        for match in CITING.finditer(text):
            for number in match["numbers"].split(", "):
                yield Citation(source, line, match["document"], number)
        if source.name == SPECIFICATION:
            for match in WITHIN.finditer(text):
                for number in re.findall(r"\d+\.\d+", match[1]):
                    yield Citation(source, line, "specification", number)


def dangling(files: Iterable[Source], known: Mapping[str, Mapping[str, int]]) -> Iterator[Finding]:
    """Citations that lead nowhere, and citations in another form."""
    for source in files:
        for cited in citations(source):
            if cited.number not in known[cited.document]:
                yield Finding(source.name, cited.line, f"there is no {cited.document} {cited.number}")
        for line, text in source.lines:
            if (match := FORMER.search(text)) and not source.name.endswith("references.py"):
                yield Finding(source.name, line, f"`{match[0]}`: write `specification 4.7` or `design 3`")


def unnamed(files: Iterable[Source], known: Mapping[str, int], untested: Mapping[str, str]) -> Iterator[Finding]:
    """Rules that no test cites, and reasons in `untested` that serve no rule."""
    cited = {
        one.number
        for source in files
        if source.name.startswith(f"{TESTS}/")
        for one in citations(source)
        if one.document == "specification"
    }
    for rule, line in known.items():
        if rule not in cited and rule not in untested:
            yield Finding(SPECIFICATION, line, f"no test names rule {rule}")
        if rule in cited and rule in untested:
            yield Finding(SPECIFICATION, line, f"a test names rule {rule}: remove it from UNTESTED")
    for rule in untested:
        if rule not in known:
            yield Finding(SPECIFICATION, 1, f"UNTESTED names rule {rule}, which there is not")


# -- Markdown


def broken_links(root: Path, files: Iterable[Source]) -> Iterator[Finding]:
    """Relative links of Markdown files that lead to no file, or to no heading of it."""
    for source in files:
        if not source.name.endswith(".md"):
            continue
        text = _without_code(source.text)
        for match in LINK.finditer(text):
            if not REMOTE.match(match[1]) and (wrong := _wrong_link(root, source, match[1])):
                yield Finding(source.name, source.line_at(match.start()), wrong)


def _without_code(text: str) -> str:
    """The text with fenced blocks and code spans blanked, so that positions stay."""
    fenced = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
    blanked = fenced.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)
    return CODE.sub(lambda match: " " * len(match[0]), blanked)


def _wrong_link(root: Path, source: Source, target: str) -> str:
    path, _, anchor = target.partition("#")
    file = (root / source.name).parent / path if path else root / source.name
    if not file.exists():
        return f"the link {target} leads to no file"
    if anchor and anchor not in _anchors(file):
        return f"the link {target} leads to no heading"
    return ""


@cache
def _anchors(file: Path) -> frozenset[str]:
    """Anchors of a Markdown file's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ +(.+?) *$", _without_code_blocks(_text(file)), re.MULTILINE)
    return frozenset(_slug(heading) for heading in headings)


def _without_code_blocks(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def _slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def missing_paths(root: Path, files: Iterable[Source]) -> Iterator[Finding]:
    """Code spans of Markdown files that read like a path of the repository and are none."""
    folders = _folders(root)
    names = frozenset(path.name for path in _files(root))
    for source in files:
        if source.name.endswith(".md"):
            for line, text in _outside_fences(source):
                for span in CODE.findall(text):
                    if _is_path(span, folders) and not _is_there(root, source, span, names):
                        yield Finding(source.name, line, f"there is no `{span}`")


def _outside_fences(source: Source) -> Iterator[tuple[int, str]]:
    fenced = False
    for line, text in source.lines:
        if text.startswith("```"):
            fenced = not fenced
        elif not fenced:
            yield line, text


def _is_path(span: str, folders: frozenset[str]) -> bool:
    if not PATH.fullmatch(span):
        return False
    return FILE_NAME.fullmatch(span.rpartition("/")[2]) is not None or span.partition("/")[0] in folders


def _is_there(root: Path, source: Source, span: str, names: frozenset[str]) -> bool:
    if (root / span).exists() or ((root / source.name).parent / span).exists():
        return True
    return "/" not in span and span in names


def _folders(root: Path) -> frozenset[str]:
    """Top folders of the repository; in build/ and the like, files come and go."""
    return frozenset(path.name for path in root.iterdir() if path.is_dir() and path.name not in SKIPPED_FOLDERS)


# -- code


def stale_paths(root: Path, files: Iterable[Source]) -> Iterator[Finding]:
    """Paths of files that code and configuration name and that are not there; tests make up paths of their own."""
    folders = "|".join(sorted(map(re.escape, _folders(root))))
    named = re.compile(rf"(?<![\w/.<{{-])(?:{folders})/[\w/.-]*\w\.(?:py|md|yaml|proto|json|svg|sh)\b")
    for source in files:
        if not source.name.endswith(".md") and not source.name.startswith(f"{TESTS}/"):
            for line, text in source.lines:
                for path in named.findall(text):
                    if not (root / path).exists():
                        yield Finding(source.name, line, f"there is no `{path}`")


# -- the whole


def check(root: Path, untested: Mapping[str, str] = UNTESTED) -> list[Finding]:
    """Everything that does not resolve in the repository at `root`, in order of place."""
    files = sources(root)
    by_name = {source.name: source for source in files}
    specification, design = by_name[SPECIFICATION], by_name[DESIGN]
    known = {"specification": rules(specification), "design": sections(design)}
    return sorted(
        {
            *misnumbered(specification),
            *dangling(files, known),
            *broken_links(root, files),
            *missing_paths(root, files),
            *stale_paths(root, files),
            *unnamed(files, known["specification"], untested),
        }
    )


def main() -> int:
    """Exit code 1, with a line for each finding on stderr, when something does not resolve."""
    findings = check(Path(__file__).resolve().parent.parent)
    for finding in findings:
        print(f"references: {finding}", file=sys.stderr)
    for rule, reason in UNTESTED.items():
        print(f"references: no test names rule {rule}: {reason}")
    if not findings:
        print("references: all resolve, and every other rule is named by a test")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
