"""The folder of definitions: files by name only, read again on change, one bad file among good ones."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import structlog

from bridge.clock import HostClock
from bridge.definitions import DefinitionFolder, DefinitionUnknown, ServerRule
from steps.publish import subject_problems
from steps.registry import all_kinds
from tables.errors import DefinitionInvalid
from tests.bridge.grpc.world import HEAD, SELECTING, SELFISH

KINDS = all_kinds()


def folder_with(folder: Path, **bodies: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name, body in bodies.items():
        (folder / f"{name}.yaml").write_text(HEAD.format(name=name) + body)
    return folder


def definitions(folder: Path, *rules: ServerRule) -> DefinitionFolder:
    return DefinitionFolder(folder, KINDS, HostClock(), rules)


def test_a_definition_is_found_by_name(tmp_path: Path) -> None:
    # specification 2.1
    found = definitions(folder_with(tmp_path, good=SELECTING)).get("good")
    assert found.name == "good"


@pytest.mark.parametrize(
    "name",
    ["../secret", "sub/secret", "/etc/passwd", "good.yaml", "good\n", "", ".", "..", "go od", "gööd", "a" * 5000],
)
def test_a_name_never_leads_outside_the_folder(tmp_path: Path, name: str) -> None:
    """The file outside exists, and is not read."""
    # specification 2.1
    folder = folder_with(tmp_path / "definitions", good=SELECTING)
    folder_with(tmp_path, secret=SELECTING)
    folder_with(folder / "sub", secret=SELECTING)
    with pytest.raises(DefinitionUnknown) as caught:
        definitions(folder).get(name)
    assert caught.value.code == "definition_unknown"
    assert "good" in caught.value.message
    assert len(caught.value.message) < 500


def test_a_file_is_read_again_when_it_changes(tmp_path: Path) -> None:
    # specification 2.16
    found = definitions(folder_with(tmp_path, good=SELECTING))
    before = found.get("good")
    assert found.get("good") is before
    (tmp_path / "good.yaml").write_text(before.text + "# changed\n")
    after = found.get("good")
    assert after.hash != before.hash


def test_a_change_of_the_same_length_is_noticed_by_its_time(tmp_path: Path) -> None:
    found = definitions(folder_with(tmp_path, good=SELECTING))
    before = found.get("good")
    file = tmp_path / "good.yaml"
    file.write_text(before.text.replace("Release?", "Deliver?").replace("Deliver", "Relieve"))
    os.utime(file, ns=(1, 1))
    assert found.get("good").hash != before.hash


def test_a_deleted_file_is_unknown(tmp_path: Path) -> None:
    found = definitions(folder_with(tmp_path, good=SELECTING))
    found.get("good")
    (tmp_path / "good.yaml").unlink()
    with pytest.raises(DefinitionUnknown):
        found.get("good")
    assert found.all() == []


def test_an_invalid_file_does_not_affect_the_others(tmp_path: Path) -> None:
    """Its problems have file and line, and it may become valid without a restart."""
    # specification 2.15
    found = definitions(folder_with(tmp_path, good=SELECTING, bad="states: []\n"))
    with pytest.raises(DefinitionInvalid) as caught:
        found.get("bad")
    assert len(caught.value.problems) > 1
    assert all(str(problem).startswith("bad.yaml:") for problem in caught.value.problems)
    assert found.get("good").name == "good"
    assert [(one.name, one.definition is not None) for one in found.all()] == [("bad", False), ("good", True)]
    folder_with(tmp_path, bad=SELECTING)
    assert found.get("bad").name == "bad"


def test_a_name_that_differs_from_the_file_name_is_invalid(tmp_path: Path) -> None:
    # specification 2.1
    (tmp_path / "other.yaml").write_text(HEAD.format(name="good") + SELECTING)
    with pytest.raises(DefinitionInvalid, match="name"):
        definitions(tmp_path).get("other")


def test_a_file_over_256_kib_is_invalid(tmp_path: Path) -> None:
    # specification 2.4
    folder_with(tmp_path, big=SELECTING + "#" * (256 * 1024))
    with pytest.raises(DefinitionInvalid):
        definitions(tmp_path).get("big")


def test_bytes_that_are_not_utf_8_are_invalid(tmp_path: Path) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00name: binary")
    with pytest.raises(DefinitionInvalid):
        definitions(tmp_path).get("binary")


def test_a_folder_in_place_of_a_file_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "odd.yaml").mkdir()
    with pytest.raises(DefinitionInvalid, match="file_unreadable"):
        definitions(tmp_path).get("odd")


def test_rules_of_the_server_are_checked_at_load(tmp_path: Path) -> None:
    """Subjects outside the publish allowlist are invalid on this server, and valid on one that allows them."""
    # specification 9.4
    folder_with(tmp_path, selfish=SELFISH)
    strict = definitions(tmp_path, lambda d, file: subject_problems(d, ("ceremony.>",), file))
    with pytest.raises(DefinitionInvalid, match="subject_not_allowed"):
        strict.get("selfish")
    open_minded = definitions(tmp_path, lambda d, file: subject_problems(d, ("elsewhere.>",), file))
    assert open_minded.get("selfish").name == "selfish"


def test_every_problem_of_every_invalid_file_is_logged(tmp_path: Path) -> None:
    # specification 2.15
    found = definitions(folder_with(tmp_path, good=SELECTING, bad="states: []\n"))
    with pytest.raises(DefinitionInvalid) as caught:
        found.get("bad")
    with structlog.testing.capture_logs() as logs:
        found.report()
    assert [line["problem"] for line in logs] == [str(problem) for problem in caught.value.problems]


def test_a_missing_folder_is_logged_and_has_no_definitions(tmp_path: Path) -> None:
    found = definitions(tmp_path / "nowhere")
    with structlog.testing.capture_logs() as logs:
        found.report()
    assert [line["event"] for line in logs] == ["definitions_missing"]
    with pytest.raises(DefinitionUnknown, match="none"):
        found.get("good")


@pytest.mark.timeout(10)
def test_a_pipe_or_device_is_unreadable_and_does_not_block(tmp_path: Path) -> None:
    """Opening a pipe without a writer would stop the whole worker, and a device has no end."""
    folder = folder_with(tmp_path, good=SELECTING)
    os.mkfifo(folder / "pipe.yaml")
    (folder / "endless.yaml").symlink_to("/dev/zero")
    (folder / "folder.yaml").mkdir()
    (folder / "loop.yaml").symlink_to("loop.yaml")
    found = definitions(folder)
    for name in ("pipe", "endless", "folder"):
        with pytest.raises(DefinitionInvalid, match="file_unreadable"):
            found.get(name)
    with pytest.raises(DefinitionUnknown):
        found.get("loop")
    assert found.get("good").name == "good"


def test_a_file_name_that_no_start_can_use_is_reported(tmp_path: Path) -> None:
    """Without the report it would have no effect; the problem lists the valid characters."""
    (tmp_path / "odd-name.yaml").write_text("version: '1.0'\n")
    (loaded,) = definitions(tmp_path).all()
    assert loaded.definition is None
    assert [problem.rule for problem in loaded.problems] == ["file_name_invalid"]


def test_a_file_called_yml_is_reported_and_its_start_names_the_remedy(tmp_path: Path) -> None:
    # specification 2.1
    folder_with(tmp_path, good=SELECTING)
    (tmp_path / "good.yaml").rename(tmp_path / "good.yml")
    found = definitions(tmp_path)
    assert [(one.name, one.problems[0].rule) for one in found.all()] == [("good", "file_name_invalid")]
    with pytest.raises(DefinitionUnknown, match=r"good\.yml must be called good\.yaml"):
        found.get("good")


@pytest.mark.parametrize("errno_", [errno.EMFILE, errno.EACCES, errno.ESTALE, errno.EIO])
def test_one_failing_read_leaves_the_definition_that_was_read_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, errno_: int
) -> None:
    """The file has changed meanwhile; the next call reads it, without a touch."""
    # specification 2.18
    found = definitions(folder_with(tmp_path, good=SELECTING))
    before = found.get("good")
    (tmp_path / "good.yaml").write_text(before.text + "# changed\n")

    def failing(*_: object) -> int:
        raise OSError(errno_, os.strerror(errno_))

    with monkeypatch.context() as patched, structlog.testing.capture_logs() as logs:
        patched.setattr(os, "open", failing)
        assert found.get("good") is before
        assert found.get("good") is before
        with pytest.raises(DefinitionInvalid, match="file_unreadable"):
            definitions(tmp_path).get("good")
    assert [line["served"] for line in logs] == [True, False]
    assert found.get("good").hash != before.hash


def test_a_swap_of_a_config_map_with_equal_size_and_time_is_seen(tmp_path: Path) -> None:
    """Kubernetes swaps the link `..data`; links inside the folder are followed."""
    # specification 2.16
    for version, text in (("..1", SELECTING), ("..2", SELECTING.replace("Release?", "Deliver?"))):
        folder_with(tmp_path / version, good=text)
        os.utime(tmp_path / version / "good.yaml", ns=(7, 7))
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "good.yaml").symlink_to("..data/good.yaml")
    found = definitions(tmp_path)
    before = found.get("good")
    (tmp_path / "..new").symlink_to("..2")
    (tmp_path / "..new").rename(tmp_path / "..data")
    after = found.get("good")
    assert (len(after.text), after.hash != before.hash) == (len(before.text), True)


def test_a_change_under_the_same_size_and_time_is_seen(tmp_path: Path) -> None:
    # specification 2.16
    found = definitions(folder_with(tmp_path, good=SELECTING))
    file = tmp_path / "good.yaml"
    os.utime(file, ns=(7, 7))
    before = found.get("good")
    file.write_text(before.text.replace("Release?", "Deliver?"))
    os.utime(file, ns=(7, 7))
    assert found.get("good").hash != before.hash


def test_a_settled_file_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = definitions(folder_with(tmp_path, good=SELECTING))
    monkeypatch.setattr("bridge.definitions.SETTLED_SECONDS", -1)
    before = found.get("good")
    monkeypatch.setattr(os, "open", None)
    assert found.get("good") is before


@pytest.mark.timeout(10)
def test_a_pipe_that_takes_the_place_of_a_file_does_not_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is swapped in after every check of the path."""
    # specification 2.18
    found = definitions(folder_with(tmp_path, good=SELECTING))
    opening = os.open

    def swapped(path: Path, flags: int) -> int:
        (tmp_path / "good.yaml").unlink()
        os.mkfifo(tmp_path / "good.yaml")
        return opening(path, flags)

    monkeypatch.setattr(os, "open", swapped)
    with pytest.raises(DefinitionInvalid, match="no regular file"):
        found.get("good")


def test_a_link_out_of_the_folder_is_not_read(tmp_path: Path) -> None:
    """A client would read lines of its target in the problems."""
    # specification 2.18
    (tmp_path / "secret").write_text("password: hunter2\n")
    folder = folder_with(tmp_path / "definitions", good=SELECTING)
    (folder / "leak.yaml").symlink_to(tmp_path / "secret")
    with pytest.raises(DefinitionInvalid) as caught:
        definitions(folder).get("leak")
    assert [(problem.rule, "password" in problem.message) for problem in caught.value.problems] == [
        ("file_unreadable", False)
    ]
    (tmp_path / "linked").symlink_to(folder)
    assert definitions(tmp_path / "linked").get("good").name == "good"
