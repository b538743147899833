"""A talk in a terminal or a pipe: reads lines, shows answers while they are made, heeds what begins
with a slash.
"""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.live import Live
from rich.table import Table
from rich.text import Text

from prefloop.base.console import console, counted, neutral, quote, say
from prefloop.base.interrupt import forget_interrupt
from prefloop.chat.session import ChatAnswer, ChatTurn, Hear, Talk, keep
from prefloop.errors import ConfigError, PrefloopError, nearest

WIDE = 100
"""Columns from which on two answers stand side by side."""
COMMANDS = {
    "adapter": ("NAME", "talk to another result from here on; the talk so far is kept"),
    "beside": ("NAME | off", "let a second result answer the same talk, shown beside the first"),
    "prefer": (
        "a | b | tie [WHY]",
        "vote on the two answers; the talk goes on with the better one",
    ),
    "score": ("", "the reward model's score of the last answers"),
    "retry": ("", "answer the last message again"),
    "undo": ("", "take the last message and its answers back"),
    "reset": ("", "begin anew; system text and tools stay"),
    "system": ("[TEXT]", "set the system text; without one, take it away"),
    "temperature": ("X", "sample at X; 0 takes the likeliest token each time"),
    "save": ("FILE", "add every turn with two answers, and its vote, to a file of comparisons"),
    "help": ("", "this list; a message that begins with / is written with //"),
    "quit": ("", "end the talk; so does Ctrl-D. Ctrl-C ends an answer"),
}


class Terminal:
    """``votes``: the file that every /prefer goes to at once."""

    def __init__(self, talk: Talk, votes: Path, annotator: str, interactive: bool) -> None:
        self.talk, self.votes, self.annotator, self.interactive = (
            talk,
            votes,
            annotator,
            interactive,
        )
        self._told_dropped = 0

    def run(self) -> None:
        """Until /quit or the end of the input. Mistakes are said, and end a talk that comes through
        a pipe with the ``PrefloopError``.
        """
        if self.interactive:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401  gives input() its editing and its history
            say(
                f"{self._talking()}; also here: {', '.join(self.talk.known)}. /help lists what you"
                " can say"
            )
        lines = self._lines()
        while True:
            try:
                line = next(lines, None)
                if line is None or not self._heed(line.strip()):
                    return
            except KeyboardInterrupt:
                forget_interrupt()
                lines = self._lines()  # what was interrupted has ended
                say(
                    "\nstopped; /quit or Ctrl-D ends the talk" if self.interactive else "\nstopped",
                    "dim",
                )
            except PrefloopError as error:
                if not self.interactive:
                    raise
                say(neutral(str(error)), "red")

    def _lines(self) -> Iterator[str]:
        if not self.interactive:
            for line in sys.stdin:
                if line.strip():
                    quote(f"> {line.strip()}", "dim")
                yield line
            return
        while True:
            try:
                yield input("> ")
            except EOFError:
                say("")
                return

    def _heed(self, line: str) -> bool:
        """Do what a line says; False when the talk is over."""
        if not line:
            return True
        if not line.startswith("/") or line.startswith("//"):
            message = line[1:] if line.startswith("//") else line
            self._show(lambda hear: self.talk.say(message, hear))
            return True
        name, _, rest = line[1:].partition(" ")
        if name not in COMMANDS:
            raise ConfigError(
                f"unknown command /{name} ({nearest(name, COMMANDS)}); /help lists them"
            )
        if name == "quit":
            return False
        getattr(self, f"_{name}")(rest.strip())
        return True

    def _named(self, side: int) -> str:
        """Who answers on a side, with the letter that /prefer takes where there are two."""
        return _label(side, self.talk.speakers[side], len(self.talk.speakers))

    def _talking(self) -> str:
        return (
            "talking to"
            f" {' and '.join(self._named(side) for side in range(len(self.talk.speakers)))}"
        )

    def _adapter(self, name: str) -> None:
        self.talk.role(_given(name, "adapter"))
        self.talk.speakers[0] = name
        say(self._talking(), "dim")

    def _beside(self, name: str) -> None:
        if _given(name, "beside") == "off":
            del self.talk.speakers[1:]
            say(f"talking to {self.talk.speakers[0]} alone", "dim")
            return
        self.talk.role(name)
        self.talk.speakers[1:] = [name]
        say(self._talking(), "dim")

    def _prefer(self, words: str) -> None:
        choice, _, why = words.partition(" ")
        if choice not in ("a", "b", "tie"):
            raise ConfigError(f"/prefer takes a, b or tie, found '{choice}'")
        found = self.talk.prefer(choice, self.annotator, why.strip() or None)  # type: ignore[arg-type]
        count = keep(self.votes, [found])
        say(f"{choice} noted in {self.votes} ({counted(count, 'comparison')})", "dim")

    def _score(self, _: str) -> None:
        found = self.talk.scores()
        for side, (who, scores) in enumerate(found):
            mean = sum(scores) / len(scores)
            members = (
                f" (members {', '.join(f'{s:.2f}' for s in scores)})" if len(scores) > 1 else ""
            )
            say(f"{_label(side, who, len(found))}: reward {mean:.2f}{members}", "dim")

    def _retry(self, _: str) -> None:
        self._show(self.talk.again)

    def _undo(self, _: str) -> None:
        quote(f"taken back: {self.talk.undo().user}", "dim")

    def _reset(self, _: str) -> None:
        self.talk.turns.clear()
        self._told_dropped = 0
        say("a new talk", "dim")

    def _system(self, text: str) -> None:
        self.talk.system = text
        say("system text set" if text else "no system text", "dim")

    def _temperature(self, text: str) -> None:
        self.talk.set_temperature(text)
        say(f"temperature {self.talk.engine.generation.temperature:g}", "dim")

    def _save(self, text: str) -> None:
        try:
            parts = shlex.split(_given(text, "save"))
        except ValueError as error:
            raise ConfigError(f"/save: {error}") from None
        found = self.talk.comparisons()
        if not found:
            raise ConfigError(
                "nothing to save: no turn has two different answers; /beside NAME, then say"
                " something"
            )
        count = keep(Path(parts[0]), found)
        say(f"{counted(len(found), 'comparison')} saved; {parts[0]} holds {count}", "dim")

    def _help(self, _: str) -> None:
        for name, (takes, does) in COMMANDS.items():
            say(f"  {f'/{name} {takes}':<28} {does}")

    def _show(self, ask: Callable[[Hear], ChatTurn]) -> None:
        """Let the talk answer and show it: side by side where there is room, else one after the
        other as the tokens come.
        """
        columns = len(self.talk.speakers) == 2 and console.is_terminal and console.width >= WIDE
        turn = self._side_by_side(ask) if columns else self._in_turn(ask)
        for side, answer in enumerate(turn.answers):
            if note := _ending(answer):
                say(f"[{self._named(side)}: {note}]", "dim")
        if turn.answers[-1].ended == "interrupt":
            forget_interrupt()
        if self.talk.dropped > self._told_dropped:
            say(
                f"[the talk is longer than the model's {self.talk.context} tokens: the oldest"
                f" {self.talk.dropped} turns are no longer sent]",
                "yellow",
            )
        self._told_dropped = self.talk.dropped

    def _in_turn(self, ask: Callable[[Hear], ChatTurn]) -> ChatTurn:
        shown: dict[int, str] = {}

        def hear(side: int, text: str) -> None:
            if side not in shown:
                if side:
                    say("")
                console.print(Text(f"{self._named(side)}: ", "bold"), end="")
            console.print(Text(neutral(text[len(shown.get(side, "")) :])), end="")
            shown[side] = text

        try:
            return ask(hear)
        finally:
            if shown:
                say("")

    def _side_by_side(self, ask: Callable[[Hear], ChatTurn]) -> ChatTurn:
        texts = ["", ""]

        def table() -> Table:
            found = Table(box=None, expand=True, pad_edge=False, padding=(0, 2, 0, 0))
            for side in range(2):
                found.add_column(Text(self._named(side), "bold"), ratio=1, overflow="fold")
            found.add_row(*(Text(neutral(text)) for text in texts))
            return found

        try:
            with Live(table(), console=console, transient=True, auto_refresh=False) as live:

                def hear(side: int, text: str) -> None:
                    texts[side] = text
                    live.update(table(), refresh=True)

                return ask(hear)
        finally:
            if any(texts):
                console.print(table())


def _label(side: int, name: str, sides: int) -> str:
    return name if sides == 1 else f"{'ab'[side]} ({name})"


def _given(text: str, command: str) -> str:
    if not text:
        raise ConfigError(f"/{command} takes {COMMANDS[command][0]}")
    return text


def _ending(answer: ChatAnswer) -> str | None:
    if answer.ended == "interrupt":
        return "stopped by you"
    if answer.ended == "length":
        return f"cut at {len(answer.token_ids)} tokens"
    return None if answer.text else "said nothing"
