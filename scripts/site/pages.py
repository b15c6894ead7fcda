"""Hooks of mkdocs: bring the pages outside docs/ into the site, and show linked files of the repository as pages.

A link in a page is written for the repository, relative to the file. The site keeps each Markdown file outside docs/
under its own path, and a linked file of another kind becomes a page with its text. So every link works in both.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File  # of the site's own environment

ROOT = Path(__file__).resolve().parents[2]
DOCS = "docs/"
# Pages outside docs/ that belong to the navigation; other Markdown files are shown when a page links to them.
OUTSIDE = ("README.md", "CHANGELOG.md", "SECURITY.md", "deploy/**/*.md", "proto/README.md")
# Folder of the site with the pages of linked files.
SHOWN = "files/"
LANGUAGES = {
    ".py": "python",
    ".yaml": "yaml",
    ".yml": "yaml",
    ".json": "json",
    ".proto": "protobuf",
    ".toml": "toml",
    ".cfg": "ini",
    ".lua": "lua",
}
LINK = re.compile(r"(\[[^\[\]]*\]\()([^()\s#]*)((?:#[^()\s]*)?(?:\s+\"[^\"]*\")?\))")
REMOTE = re.compile(r"[a-z][a-z0-9+.-]*:|//")
# Fenced blocks and code spans, in which nothing is a link.
CODE = re.compile(r"(^```.*?^```|`[^`\n]+`)", re.DOTALL | re.MULTILINE)
README = "overview.md"
# Sections of the navigation that get the pages that it does not name.
OPERATE, INSIDE = "Operate", "Inside"
HEADING = re.compile(r"^# (.+)$", re.MULTILINE)


def on_config(config: Any) -> Any:
    """Expand the folders of the navigation: `decisions/` becomes its pages, in order. Then add all other pages."""
    config.nav = [_expanded(entry) for entry in config.nav]
    named = set(_named(config.nav))
    for path in (*_outside(), *_globbed(f"{DOCS}*.md"), *_globbed(f"{DOCS}*/*.md")):
        if page_of(path) not in named:
            _section(config.nav, OPERATE if path.startswith("deploy/") else INSIDE).append(page_of(path))
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages outside docs/, the pages of linked files, and mermaid."""
    queue = [DOCS + file.src_uri for file in files.documentation_pages()]
    queue += _outside()
    seen: set[str] = set()
    while queue:
        path = queue.pop()
        if path in seen:
            continue
        seen.add(path)
        uri = page_of(path)
        if files.get_file_from_path(uri) is None:
            files.append(File.generated(config, uri, content=_content(path)))
        if path.endswith(".md"):
            queue += [target for target in _targets(path) if not _is_asset(target)]
    mermaid = os.environ.get("MERMAID")
    if mermaid:
        files.append(File.generated(config, "assets/mermaid.min.js", abs_src_path=mermaid))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:  # noqa: ARG001 - mkdocs names them
    """Turn links of the repository into links of the site."""
    here = page.file.src_uri
    return _with_links(
        markdown,
        repository_path(here),
        lambda target: posixpath.relpath(page_of(target), posixpath.dirname(here) or "."),
    )


# -- paths


def page_of(path: str) -> str:
    """Return the page or asset of the site that shows a file or folder of the repository."""
    if path.startswith(DOCS) and (ROOT / path).is_file():
        return path.removeprefix(DOCS)
    if path == "README.md":
        return README
    if path in _outside():
        return path
    return f"{SHOWN}{path.strip('/') or 'all'}.md"


def repository_path(uri: str) -> str:
    """Return the file of the repository that a page of the site shows."""
    if uri == README:
        return "README.md"
    if uri.startswith(SHOWN):
        return uri.removeprefix(SHOWN).removesuffix(".md")
    return DOCS + uri if (ROOT / DOCS / uri).exists() else uri


def _is_asset(path: str) -> bool:
    return path.startswith(DOCS) and not path.endswith(".md") and (ROOT / path).is_file()


@cache
def _outside() -> tuple[str, ...]:
    return tuple(path for pattern in OUTSIDE for path in _globbed(pattern))


def _globbed(pattern: str) -> list[str]:
    return sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob(pattern))


# -- links


def _targets(path: str) -> Iterator[str]:
    """The files and folders of the repository to which a page links."""
    found: list[str] = []

    def note(target: str) -> str:
        found.append(target)
        return target

    _with_links((ROOT / path).read_text("utf-8"), path, note)
    yield from found


def _with_links(text: str, path: str, changed: Any) -> str:
    """Return the text with each link to something of the repository changed; all others stay."""

    def link(match: re.Match[str]) -> str:
        target = match[2]
        if not target or REMOTE.match(target):
            return match[0]
        resolved = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
        if resolved.startswith("..") or not (ROOT / resolved).exists():
            return match[0]  # mkdocs reports it
        return f"{match[1]}{changed(resolved)}{match[3]}"

    parts = CODE.split(text)
    return "".join(part if index % 2 else LINK.sub(link, part) for index, part in enumerate(parts))


# -- content


def _content(path: str) -> str:
    file = ROOT / path
    if path.endswith(".md"):
        return file.read_text("utf-8")
    head = f"---\nsearch: {{exclude: true}}\n---\n\n# {path}\n\n"
    return head + (_folder(path) if file.is_dir() else _shown(file))


def _shown(file: Path) -> str:
    text = file.read_text("utf-8")
    fence = "`" * (max((len(run) for run in re.findall(r"`{3,}", text)), default=2) + 1)
    return f"{fence}{LANGUAGES.get(file.suffix, 'text')}\n{text.rstrip()}\n{fence}\n"


def _folder(path: str) -> str:
    """A list of the folder's files; those that are pages are links."""
    lines = []
    for file in sorted((ROOT / path).iterdir()):
        name = f"{path.strip('/')}/{file.name}"
        shown = file.suffix == ".md" and file.is_file()
        lines.append(f"- [{_title(file)}](/{name})" if shown else f"- `{file.name}`")
    here = page_of(path)
    text = "\n".join(lines) + "\n"
    return re.sub(r"\(/([^)]+)\)", lambda m: f"({posixpath.relpath(page_of(m[1]), posixpath.dirname(here))})", text)


def _title(file: Path) -> str:
    match = HEADING.search(file.read_text("utf-8"))
    return match[1] if match else file.name


# -- navigation


def _expanded(entry: Any) -> Any:
    if isinstance(entry, str):
        return README if entry == "README.md" else entry
    [(title, value)] = entry.items()
    if isinstance(value, list):
        return {title: [_expanded(one) for one in value]}
    if value.endswith("/"):
        folder = value if (ROOT / value).is_dir() else DOCS + value
        return {title: [page_of(path) for path in _globbed(f"{folder}*.md")]}
    return {title: _expanded(value)}


def _named(entry: Any) -> Iterator[str]:
    """Every page of a part of the navigation."""
    if isinstance(entry, str):
        yield entry
        return
    for part in entry.values() if isinstance(entry, dict) else entry:
        yield from _named(part)


def _section(nav: list[Any], title: str) -> list[Any]:
    pages: list[Any] = next(entry[title] for entry in nav if title in entry)
    return pages
