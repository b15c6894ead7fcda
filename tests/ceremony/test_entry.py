"""The entry recognises packages that are not the engine's before it imports any."""

from __future__ import annotations

from pathlib import Path

import pytest

import ceremony_engine


def test_the_engines_own_packages_are_accepted() -> None:
    """In a checkout they are beside the entry."""
    assert ceremony_engine.intruder() is None


def test_a_package_from_elsewhere_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine is expected in another folder, so every package is foreign; the first one is named."""
    monkeypatch.setattr(ceremony_engine, "HOME", tmp_path)
    line = ceremony_engine.intruder()
    assert line is not None
    assert line.startswith("package_shadowed: `ceremony` would be imported from ")


@pytest.mark.parametrize("text", ['"""Hierarchical data sets."""\n', None])
def test_a_package_without_the_mark_is_named(
    text: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A foreign file replaces ours, or it is missing: the program ends with one line."""
    monkeypatch.setattr(ceremony_engine, "HOME", tmp_path)
    monkeypatch.setattr(ceremony_engine, "PACKAGES", ("hierarchies",))
    monkeypatch.syspath_prepend(tmp_path)
    own = tmp_path / "hierarchies/__init__.py"
    own.parent.mkdir()
    if text is not None:
        own.write_text(text)
    with pytest.raises(SystemExit) as end:
        ceremony_engine.main()
    assert end.value.code == 1
    assert capsys.readouterr().err.startswith(f"package_overwritten: {own} is not the engine's any more; ")
