"""Progress: one line in a terminal, a line for every step elsewhere."""

import os
import sys

import pytest

from nas.cli.progress import progress_line


def three_steps_and_a_fit():
    with progress_line(3, desc="search") as bar:
        for step in range(3):
            bar.set_postfix_str(f"loss {step}", refresh=False)
            bar.update()
        bar.set_description_str("front", refresh=False)
        bar.set_postfix_str("1,234 parameters")
        bar.refresh()  # nothing new


def test_a_file_gets_a_line_for_every_step(capsys):
    three_steps_and_a_fit()
    written = capsys.readouterr().err
    ends = [line.split("] ")[1] for line in written.splitlines()]
    assert ends == ["search, loss 0", "search, loss 1", "search, loss 2", "front, 1,234 parameters"]
    assert [line[:9] for line in written.splitlines()] == ["1/3 epoch", "2/3 epoch", "3/3 epoch", "3/3 epoch"]
    assert "\r" not in written


def test_nothing_is_written_before_the_first_step(capsys):
    with progress_line(3, initial=2):
        pass
    assert capsys.readouterr().err == ""


def test_a_terminal_has_one_line(monkeypatch):
    pty, termios = pytest.importorskip("pty"), pytest.importorskip("termios")
    reader, writer = pty.openpty()
    termios.tcsetwinsize(writer, (30, 100))
    with os.fdopen(writer, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        three_steps_and_a_fit()
        monkeypatch.undo()
        written = ""
        while not written.endswith("\n"):
            written += os.read(reader, 65536).decode()
    os.close(reader)
    assert written.count("\n") == 1 and written.count("\r") >= 3
    assert "1,234 parameters" in written
