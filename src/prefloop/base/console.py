"""The output of a run on the terminal: lines, progress with rate and remaining time, tables.

Everything that is printed goes through ``console`` or ``complain``. Texts of rows, servers and
models may hold control characters, so both replace those; only rich's own styling passes.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.segment import Segment

from prefloop.base.interrupt import check_interrupted
from prefloop.base.redact import without_secrets

PLAIN_EVERY_S = 10.0
_PICTURES = {c: 0x2400 + c for c in range(0x20) if c not in (0x09, 0x0A)} | {0x7F: 0x2421}
MOST_SAID = 4_000
"""Bytes of an error, or of a line."""
_TURNS = (
    *range(0x80, 0xA0),
    0x061C,
    0x200E,
    0x200F,
    *range(0x202A, 0x202F),
    *range(0x2066, 0x206A),
)
_HALVES = range(0xD800, 0xE000)  # of an emoji that was cut: no encoding can write them
_NEUTRAL = _PICTURES | dict.fromkeys((*_TURNS, *_HALVES), 0xFFFD)


class _Door(Console):
    """A console that makes every text neutral before it is drawn, cells of tables included."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=neutral(segment.text))


console = _Door(highlight=False, soft_wrap=True, emoji=False)


def say(text: str, style: str | None = None) -> None:
    """Print one or more lines, each without secrets and at most ``MOST_SAID`` bytes long."""
    console.print("\n".join(map(shown, text.split("\n"))), style=style, markup=False)


def quote(text: str, style: str | None = None) -> None:
    """Print a text of other people, such as a row: neutral, but neither redacted nor cut."""
    console.print(neutral(text), style=style, markup=False)


def complain(text: str) -> None:
    """Print an error to stderr: neutral, without secrets and at most ``MOST_SAID`` bytes long."""
    with contextlib.suppress(OSError):  # of a terminal that has gone
        print(shown(text), file=sys.stderr)


def shown(text: str) -> str:
    """The text as a person may see it: neutral, without secrets, at most ``MOST_SAID`` bytes and
    the number of characters that were cut.
    """
    # The search for addresses takes time quadratic in the length, so a long text is cut first.
    safe = without_secrets(neutral(text[: 4 * MOST_SAID]))
    kept = safe.encode()[:MOST_SAID].decode(errors="ignore")
    cut = len(text[4 * MOST_SAID :]) + len(safe) - len(kept)
    return f"{kept} … ({cut:,} characters more)" if cut else kept


def neutral(text: str) -> str:
    """The text with control characters (except tab and newline) replaced by their pictures and
    direction marks by �, so that it cannot control the terminal.
    """
    return text.translate(_NEUTRAL)


def counted(count: int, one: str, many: str | None = None) -> str:
    """'1 vote', '1,200 votes'; ``many`` is a plural that takes more than an s."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def shortened(text: str, most: int = 160) -> str:
    """The text, or as many of its whole words as ``most`` characters hold, and '…'."""
    if len(text) <= most:
        return text
    return (text[:most].rpartition(" ")[0] or text[: most - 1]) + "…"


def listed(names: Iterable[str], most: int = 20) -> str:
    """The first ``most`` names, shortened and neutral, with commas between them and the number of
    the others.
    """
    names = list(names)
    shown = ", ".join(shortened(neutral(name), 60) for name in names[:most])
    return shown + (f" and {len(names) - most:,} more" if len(names) > most else "")


def duration(seconds: float) -> str:
    """'8.3s', '4m12s', '1h03m'."""
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m{rest:02d}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"


@contextlib.contextmanager
def waiting(what: str) -> Iterator[None]:
    """A spinner with elapsed time on a terminal. Afterwards a line with the time, if it was more
    than a second.
    """
    started = time.monotonic()
    if console.is_terminal:
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=console, transient=True) as bar:
            bar.add_task(what, total=None)
            yield
    else:
        yield
    seconds = time.monotonic() - started
    if seconds > 1:
        say(f"  {what}: {duration(seconds)}", "dim")


@contextlib.contextmanager
def progress(
    what: str, total: int, unit: str = "it", lines: bool = True, done: int = 0
) -> Iterator[Callable[..., None]]:
    """Show ``what`` advancing to ``total``; yields ``advance(n=1, note="")``.

    A terminal gets a live bar. A log file gets a line every ten seconds, unless ``lines`` is off
    for work that prints its own. Both show the rate and the remaining time. The rate counts from
    the first advance, which may have waited for a model. ``total`` includes the ``done`` part of a
    resumed stage; 0 is an unknown total.
    """
    spoken = time.monotonic()
    first: tuple[float, int] | None = None

    def rate() -> float:
        """Units per second; 0 at the first advance."""
        nonlocal first
        now = time.monotonic()
        if first is None:
            first = now, done
        return (done - first[1]) / max(now - first[0], 1e-9)

    if console.is_terminal:
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=28),
            TaskProgressColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("gone,"),
            TimeRemainingColumn(),
            TextColumn("left"),
            TextColumn("{task.fields[note]}", style="dim", markup=False),
        )
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task(what, total=total or None, completed=done, rate="", note="")

            def advance(n: int = 1, note: str = "") -> None:
                nonlocal done
                check_interrupted()
                done += n
                now = rate()
                bar.update(task, advance=n, rate=f"{now:.3g} {unit}/s" if now else "", note=note)

            yield advance
        return

    def advance_plain(n: int = 1, note: str = "") -> None:
        nonlocal done, spoken
        check_interrupted()
        done += n
        now = rate()
        if lines and time.monotonic() - spoken >= PLAIN_EVERY_S:
            spoken = time.monotonic()
            of, speed = f"/{total}" if total else "", f"  {now:.3g} {unit}/s" if now else ""
            left = f"  {duration((total - done) / now)} left" if total and now > 0 else ""
            say(f"  {what} {done}{of}{speed}{left}  {note}".rstrip())

    yield advance_plain
