"""Files that appear whole or not at all, and who may write them."""

import errno
from unittest.mock import Mock

import pytest
from filelock import FileLock

from dfdc_lib.store import DamagedFile, Journal, WorkFolder, appear_whole, hold, list_faces


def test_artifacts_lie_beside_the_data_never_in_them(tmp_path):
    assert WorkFolder.beside(tmp_path / "dfdc").root == tmp_path / "work" / "dfdc"
    one_part = WorkFolder.beside(tmp_path / "dfdc" / "dfdc_train_part_3").root
    assert one_part == tmp_path / "work" / "dfdc_train_part_3"


def test_a_failed_write_leaves_the_old_artifact_and_a_killed_one_does_no_harm(tmp_path):
    path, left = tmp_path / "a", tmp_path / ".a.part"
    left.mkdir()
    (left / "half").touch()
    with appear_whole(path) as temporary:
        temporary.write_text("old")
    with pytest.raises(RuntimeError), appear_whole(path) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_faces_are_listed_in_order_and_strangers_refused(tmp_path):
    for name in ("100_0.png", "20_1.png", "20_0.png", "notes.txt"):
        (tmp_path / name).touch()
    assert list_faces(tmp_path) == [(20, 0), (20, 1), (100, 0)]
    assert list_faces(tmp_path / "gone") == list_faces(tmp_path / "notes.txt") == []
    (tmp_path / "best.png").touch()
    with pytest.raises(DamagedFile, match=f"{tmp_path}: best.png"):
        list_faces(tmp_path)


@pytest.mark.parametrize("torn", ["", "half a li", "a whole line without its end"])
def test_a_journal_drops_a_line_that_was_cut_off(tmp_path, torn):
    journal = Journal(tmp_path / "journal")
    assert journal.lines() == []
    journal.append(["one", "zwei ü"])
    with open(journal.path, "a") as file:
        file.write(torn)
    assert journal.lines() == ["one", "zwei ü"]
    journal.append(["three"])
    assert journal.path.read_text() == "one\nzwei ü\nthree\n"


def test_a_disk_without_locks_is_said(tmp_path, monkeypatch, capsys):
    refuse = Mock(side_effect=OSError(errno.ENOLCK, "No locks available"))
    monkeypatch.setattr(FileLock, "_acquire", refuse)
    with hold(tmp_path / "status.csv"):
        assert "this disk has no locks" in capsys.readouterr().err
