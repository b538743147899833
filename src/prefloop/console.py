"""What a person sees while a run works: lines, progress with rate and remaining time, tables."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator

from rich.console import Console
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

from prefloop.interrupt import check_interrupted

console = Console(highlight=False, soft_wrap=True)
PLAIN_EVERY_S = 10.0
_PICTURES = {c: 0x2400 + c for c in range(0x20) if c not in (0x09, 0x0A)} | {0x7F: 0x2421}
_TURNS = (*range(0x80, 0xA0), 0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_NEUTRAL = _PICTURES | dict.fromkeys(_TURNS, 0xFFFD)


def say(line: str, style: str | None = None) -> None:
    """Print one line."""
    console.print(line, style=style, markup=False)


def neutral(text: str) -> str:
    """The text without power over a terminal: control characters (but tab and newline) as their pictures, direction marks as �."""
    return text.translate(_NEUTRAL)


def counted(count: int, one: str, many: str | None = None) -> str:
    """'1 vote', '1,200 votes'; ``many`` where an s does not make it."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def shortened(text: str, most: int = 160) -> str:
    """The text, or as many of its whole words as ``most`` characters hold, and '…'."""
    if len(text) <= most:
        return text
    return (text[:most].rpartition(" ")[0] or text[: most - 1]) + "…"


def listed(names: Iterable[str], most: int = 20) -> str:
    """The names with commas between, as many as a line bears, none without its length or power over a terminal."""
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
    """A spinner with elapsed time on a terminal; afterwards a line with the seconds, when there was more than one."""
    started = time.monotonic()
    if console.is_terminal:
        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
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

    A terminal gets a live bar; a log file gets a line every ten seconds (unless ``lines`` is off, for work that prints its own), with rate
    and remaining time in both; the rate is that since the first advance, which may have waited for a model. ``total`` counts what was
    ``done`` before, in a resumed stage, too; 0 is a total that nobody knows.
    """
    spoken = time.monotonic()
    first: tuple[float, int] | None = None

    def rate() -> float:
        """Per second; 0 while nobody can know."""
        nonlocal first
        now = time.monotonic()
        if first is None:
            first = now, done
        return (done - first[1]) / max(now - first[0], 1e-9)

    if console.is_terminal:
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            TaskProgressColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("gone,"),
            TimeRemainingColumn(),
            TextColumn("left"),
            TextColumn("{task.fields[note]}", style="dim"),
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
