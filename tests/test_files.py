"""Nothing is lost when a file or folder cannot be replaced."""

from pathlib import Path

import pytest

from nas.files import alone, remove_unfinished, replacing, replacing_folder


def test_a_failed_write_changes_nothing(tmp_path):
    (tmp_path / "file").write_text("old")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("old")

    def fail(temporary):
        (temporary / "file" if temporary.is_dir() else temporary).write_text("half")
        raise ValueError("no")

    for replace, name in ((replacing, "file"), (replacing_folder, "folder")):
        with pytest.raises(ValueError, match="no"):
            replace(tmp_path / name, fail)
    assert (tmp_path / "file").read_text() == (tmp_path / "folder" / "file").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 2


def test_the_old_folder_comes_back_when_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("old")
    move = Path.replace

    def refuse_new(self, target):
        if self.suffix == ".new":
            raise OSError("disk full")
        return move(self, target)

    monkeypatch.setattr(Path, "replace", refuse_new)
    with pytest.raises(OSError, match="disk full"):
        replacing_folder(tmp_path / "folder", lambda folder: (folder / "file").write_text("new"))
    assert (tmp_path / "folder" / "file").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_what_is_being_written_is_not_taken_for_what_a_killed_process_left(tmp_path):
    (tmp_path / ".unfinished-ab12cd34").write_text("half")

    def write(temporary):
        remove_unfinished(tmp_path)
        assert (tmp_path / ".unfinished-ab12cd34").exists()
        temporary.write_text("whole")

    replacing(tmp_path / "file", write)
    remove_unfinished(tmp_path)
    remove_unfinished(tmp_path / "nowhere")
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_who_goes_on_removes_what_a_killed_process_left(tmp_path):
    for place in (tmp_path, tmp_path / "path"):
        place.mkdir(exist_ok=True)
        (place / ".unfinished-ab12cd34.safetensors").write_text("half")
        (place / "whole.json").write_text("{}")
    with alone(tmp_path):
        assert not list(tmp_path.rglob(".unfinished-*"))
        assert len(list(tmp_path.rglob("whole.json"))) == 2
