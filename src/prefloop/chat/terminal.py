"""The chat's terminal: it reads lines, shows answers as they are sampled, and runs /commands.

Input may also come through a pipe.
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
"""Two answers stand side by side in a terminal of at least so many columns."""
COMMANDS = {
    "adapter": ("NAME", "switch to another model; the chat so far is kept"),
    "beside": ("NAME | off", "let a second model answer the same messages"),
    "prefer": ("a | b | tie [WHY]", "vote on the two answers; the chat continues with the winner"),
    "score": ("", "show the reward model's scores of the last answers"),
    "retry": ("", "answer the last message again"),
    "undo": ("", "remove the last message and its answers"),
    "reset": ("", "start over; the system message and the tools stay"),
    "system": ("[TEXT]", "set the system message, or remove it"),
    "temperature": ("X", "sample at temperature X; 0 always takes the most likely token"),
    "save": ("FILE", "add every turn with two answers, and its vote, to a file of comparisons"),
    "help": ("", "show this list; start a message with // to send one that begins with /"),
    "quit": ("", "end the chat, as does Ctrl-D; Ctrl-C ends an answer"),
}


class Terminal:
    """The terminal of one chat. Every vote is written to the file ``votes`` at once."""

    def __init__(self, talk: Talk, votes: Path, annotator: str, interactive: bool) -> None:
        self.talk, self.votes, self.annotator = talk, votes, annotator
        self.interactive = interactive
        self._dropped_shown = 0

    def run(self) -> None:
        """Read and answer lines until /quit or the end of the input.

        A mistake prints a message; in a piped chat its ``PrefloopError`` ends the chat.
        """
        if self.interactive:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401  gives input() its editing and its history
            known = ", ".join(self.talk.known)
            say(f"{self._talking()}; available: {known}. /help lists the commands")
        lines = self._lines()
        while True:
            try:
                line = next(lines, None)
                if line is None or not self._heed(line.strip()):
                    return
            except KeyboardInterrupt:
                forget_interrupt()
                lines = self._lines()  # the interrupted generator has ended
                ending = "; /quit or Ctrl-D ends the chat" if self.interactive else ""
                say(f"\nstopped{ending}", "dim")
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
        """Run a command or send a message; returns False when the chat is over."""
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
        """The model on a side; where there are two, with the letter for /prefer."""
        return _label(side, self.talk.speakers[side], len(self.talk.speakers))

    def _talking(self) -> str:
        names = [self._named(side) for side in range(len(self.talk.speakers))]
        return f"talking to {' and '.join(names)}"

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
            raise ConfigError(f"/prefer takes a, b or tie, not '{choice}'")
        comparison = self.talk.prefer(choice, self.annotator, why.strip() or None)  # type: ignore[arg-type]
        count = keep(self.votes, [comparison])
        say(f"{choice} saved to {self.votes} ({counted(count, 'comparison')})", "dim")

    def _score(self, _: str) -> None:
        scored = self.talk.scores()
        for side, (who, scores) in enumerate(scored):
            mean, each = sum(scores) / len(scores), ", ".join(f"{s:.2f}" for s in scores)
            members = f" (members {each})" if len(scores) > 1 else ""
            say(f"{_label(side, who, len(scored))}: reward {mean:.2f}{members}", "dim")

    def _retry(self, _: str) -> None:
        self._show(self.talk.again)

    def _undo(self, _: str) -> None:
        quote(f"removed: {self.talk.undo().user}", "dim")

    def _reset(self, _: str) -> None:
        self.talk.turns.clear()
        self._dropped_shown = 0
        say("a new chat", "dim")

    def _system(self, text: str) -> None:
        self.talk.system = text
        say("system message set" if text else "no system message", "dim")

    def _temperature(self, text: str) -> None:
        self.talk.set_temperature(text)
        say(f"temperature {self.talk.engine.generation.temperature:g}", "dim")

    def _save(self, text: str) -> None:
        try:
            parts = shlex.split(_given(text, "save"))
        except ValueError as error:
            raise ConfigError(f"/save: {error}") from None
        comparisons = self.talk.comparisons()
        if not comparisons:
            raise ConfigError(
                "nothing to save: no turn has two different answers; use /beside NAME, then send a"
                " message"
            )
        count = keep(Path(parts[0]), comparisons)
        say(f"{counted(len(comparisons), 'comparison')} saved; {parts[0]} holds {count}", "dim")

    def _help(self, _: str) -> None:
        for name, (takes, does) in COMMANDS.items():
            say(f"  {f'/{name} {takes}':<28} {does}")

    def _show(self, ask: Callable[[Hear], ChatTurn]) -> None:
        """Show the answers while they are sampled: side by side where there is room, else in
        turn.
        """
        columns = len(self.talk.speakers) == 2 and console.is_terminal and console.width >= WIDE
        turn = self._side_by_side(ask) if columns else self._in_turn(ask)
        for side, answer in enumerate(turn.answers):
            if note := _ending(answer):
                say(f"[{self._named(side)}: {note}]", "dim")
        if turn.answers[-1].ended == "interrupt":
            forget_interrupt()
        if self.talk.dropped > self._dropped_shown:
            say(
                f"[the chat is longer than the model's {self.talk.context} tokens: the oldest"
                f" {self.talk.dropped} turns are no longer sent]",
                "yellow",
            )
        self._dropped_shown = self.talk.dropped

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
            columns = Table(box=None, expand=True, pad_edge=False, padding=(0, 2, 0, 0))
            for side in range(2):
                columns.add_column(Text(self._named(side), "bold"), ratio=1, overflow="fold")
            columns.add_row(*(Text(neutral(text)) for text in texts))
            return columns

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
    return None if answer.text else "empty answer"
