"""Usage lines and errors of ``prefloop`` name every command as a user types it."""

from __future__ import annotations

import re

import pytest

from prefloop.cli import _main as cli
from prefloop.cli import guarded


def told(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit status of a command that only says something, and what it says, without line ends and
    frames.
    """
    with pytest.raises(SystemExit) as left:
        guarded(cli, words)
    said = capsys.readouterr()
    return int(left.value.code or 0), " ".join(re.sub("[│─╭╮╰╯]", " ", said.out + said.err).split())


def test_the_usage_line_of_every_command_starts_with_what_the_user_typed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    waiting, seen = ["prefloop"], set()
    while waiting:
        command = waiting.pop()
        status, said = told([*command.split()[1:], "--help"], capsys)
        assert status == 0 and said.startswith(f"usage: {command} [-h]")
        seen.add(command.removeprefix("prefloop").strip())
        choices = re.match(r"usage: [a-z ]+ \[-h\] \{([a-z, ]+)\}", said)
        waiting += [f"{command} {word}" for word in choices[1].split(",")] if choices else []
    assert {
        "check",
        "judge",
        "judge calibrate",
        "reward eval",
        "label next",
        "label users add",
        "env",
    } <= seen


@pytest.mark.parametrize("command", ["judge calibrate", "reward eval", "label push"])
def test_what_is_missing_is_told_with_the_command_as_it_was_typed(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, said = told(command.split(), capsys)
    assert (
        status == 2
        and f"Missing from prefloop {command}:" in said
        and f"prefloop {command} --help" in said
    )


@pytest.mark.parametrize(("command", "name"), [("reward eval RUN", "FILE"), ("report", "RUN")])
def test_files_that_a_command_cannot_do_without_are_required_in_its_help_too(
    command: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, said = told(command.split(), capsys)
    assert status == 2 and "Missing from" in said and f" {name} " in said
    status, said = told([*command.split()[:2], "--help"], capsys)
    assert f"{name} [{name} ...]" in said and re.search(rf" {name} [^(]*\(required\)", said)


def test_half_a_command_is_answered_with_the_whole_one(capsys: pytest.CaptureFixture[str]) -> None:
    status, said = told(["reward", "runs/demo"], capsys)
    assert status == 2 and "reward eval" in said
