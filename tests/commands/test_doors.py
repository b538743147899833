"""What is printed has no power over a terminal, is not endless, and says what is wrong with a path
instead of a traceback.
"""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rich.table import Table
from rich.text import Text

from prefloop.base import console as door
from prefloop.base.console import MOST_SAID, complain, neutral, progress, quote, say, shown, waiting
from prefloop.chat.terminal import Terminal
from prefloop.cli import _main, guarded
from prefloop.errors import DataError

POWER = "\x1b]0;owned\x07\x1b[2J\x9b1A\r\b\x7f\u202e\ud83d"
STYLES = ("\x1b[31m", "\x1b[1m", "\x1b[0m", "\x1b[2m", "\x1b[1;31m", "\x1b[3m")


def table(text: str) -> None:
    found = Table(title=Text(text))
    found.add_column(Text(text))
    found.add_row(Text(text))
    door.console.print(found)


def bar(text: str) -> None:
    with progress(text, 2) as advance:
        advance(note=text)


def spin(text: str) -> None:
    with waiting(text):
        pass


DOORS: dict[str, Callable[[str], None]] = {
    "a line": lambda text: say(text, "red"),
    "a text": lambda text: door.console.print(Text(text, "bold")),
    "a table": table,
    "an error": complain,
    "a row": quote,
    "a bar": bar,
    "a spinner": spin,
}


def printed(text: str, show: Callable[[str], None]) -> str:
    """All that a terminal gets, without our own styles and what rich draws its bars with."""
    with pytest.MonkeyPatch.context() as patch:
        terminal = type(door.console)(
            file=io.StringIO(),
            force_terminal=True,
            color_system="standard",
            width=10_000,
            emoji=False,
            highlight=False,
        )
        patch.setattr(door, "console", terminal)
        patch.setattr(sys, "stderr", terminal.file)
        show(text)
    return terminal.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", DOORS)
@settings(max_examples=30, deadline=None)
@given(st.text(st.sampled_from("a[/]:\x1b\x07\r\b\x9b\x9d;]0\u202e\ud83d\x7f\x00"), max_size=20))
@example(POWER)
@example("[/red] [link=file:///x]y[/link] :smile: [bold")
def test_no_text_has_power_through_any_door(kind: str, text: str) -> None:
    found = printed(text, DOORS[kind])
    drawn = printed("", DOORS[kind])
    for power in ("\x1b]", "\x07", "\b", "\x9b", "\x9d", "\x7f", "\x00", "\u202e", "\ud83d"):
        assert power not in found.replace(drawn, "")
    assert found.count("\r") <= drawn.count("\r") + 8 and "\U0001f604" not in found
    if kind in ("a line", "an error", "a row"):
        for style in STYLES:
            found = found.replace(style, "")
        assert found == neutral(text) + "\n"


def test_an_error_and_a_line_are_at_most_4_kb_and_say_what_was_cut(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(_: object) -> None:
        raise DataError("é" * 1_000_000)

    assert guarded(fail, []) == 2
    said = capsys.readouterr().err
    assert len(said.encode()) < 4_096 and said.endswith("characters more)\n")
    kept = shown("é" * 1_000_000)
    assert kept.count("é") + int(kept.partition("(")[2].split()[0].replace(",", "")) == 1_000_000
    say("x" * 1_000_000 + "\nand a second line")
    first, second = capsys.readouterr().out.splitlines()
    assert len(first) < 4_096 and second == "and a second line"
    assert shown("a" * MOST_SAID) == "a" * MOST_SAID


def test_a_row_is_printed_as_it_is_read(capsys: pytest.CaptureFixture[str]) -> None:
    row = f"see https://x.org/a?b=1&c=2 for {'more ' * 2_000}password=abc<|im_end|>⟧"
    quote(row)
    assert capsys.readouterr().out == row + "\n"


def test_a_talk_through_a_pipe_echoes_what_was_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = "what is https://x.org/a?b=1 with password=abc\x1b[2J"
    monkeypatch.setattr(sys, "stdin", io.StringIO(asked + "\n"))
    talk: Any = None
    assert (
        next(Terminal(talk, Path("votes.jsonl"), "me", interactive=False)._lines()) == asked + "\n"
    )
    assert capsys.readouterr().out == f"> {neutral(asked)}\n"


def test_a_warning_and_a_traceback_are_neutral_and_without_secrets(tmp_path: Path) -> None:
    script = (
        "import sys, warnings; from prefloop.cli import guarded\n"
        "def run(_):\n"
        "    warnings.warn('http://u:hunter2@h \\x1b]0;x\\x07')\n"
        "    raise RuntimeError('http://u:hunter2@h \\x1b]0;x\\x07')\n"
        "sys.exit(guarded(run, []))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert (
        done.returncode == 1
        and "Traceback" in done.stderr
        and "RuntimeError: http://h" in done.stderr
    )
    assert "UserWarning: http://h" in done.stderr and "hunter2" not in done.stderr.replace(
        script, ""
    )
    assert "\x1b" not in done.stderr and "\x07" not in done.stderr


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a" * 300, "the name is too long"),
        ("file/inside", "a part of the path is a file"),
        ("nul\0", "NUL character"),
    ],
)
def test_a_path_that_cannot_be_is_an_error_that_names_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, words: str
) -> None:
    (tmp_path / "file").touch()
    assert guarded(lambda _: (tmp_path / name).write_text(""), []) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and words in said and (("\0" in name) or name in said)


@pytest.mark.parametrize("ask", [os.stat, os.lstat, os.listdir, os.mkdir, open])
def test_a_path_with_a_nul_is_told_whoever_refuses_it(
    ask: Callable[[str], object], capsys: pytest.CaptureFixture[str]
) -> None:
    assert guarded(lambda _: ask("a\0b"), []) == 2 and "NUL character" in capsys.readouterr().err


def test_a_full_disk_is_told_where_the_system_names_no_file(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    assert guarded(fail, []) == 2 and "error: the disk is full" in capsys.readouterr().err


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC, errno.EISDIR])
def test_what_the_system_refuses_is_told_with_the_path(
    number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: object) -> None:
        raise OSError(number, os.strerror(number), "/some/where")

    assert guarded(fail, []) == 2 and "error: '/some/where': " in capsys.readouterr().err


@pytest.mark.parametrize(
    "fault",
    [
        KeyError("x"),
        ValueError("x"),
        ValueError("the text has an embedded null somewhere"),
        FileNotFoundError(errno.ENOENT, "no", "x"),
        OSError("x"),
        PermissionError(errno.EACCES, "no"),
        PermissionError(errno.EPERM, "no"),
    ],
)
def test_a_fault_of_ours_stays_a_traceback(fault: Exception) -> None:
    def fail(_: object) -> None:
        raise fault

    with pytest.raises(type(fault)):
        guarded(fail, [])


def test_an_argument_of_a_command_is_told_without_power(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (
        ["check", "\x1b[2J\x07.jsonl"],
        ["check", "--nothing\x1b]0;x\x07"],
        ["\x1b[31mchekc"],
    ):
        try:
            status = guarded(_main, words)
        except SystemExit as left:
            status = int(left.code or 0)
        said = capsys.readouterr()
        assert (
            status == 2 and "\x1b" not in said.err + said.out and "\x07" not in said.err + said.out
        )
