"""Print annotator agreement as tables on a terminal."""

from __future__ import annotations

from rich.table import Table

from prefloop.base.console import console, counted, say
from prefloop.stats.annotator_agreement import AnnotatorAgreement, Person, Position

_MOST_PAIRS = 15


def show(agreement: AnnotatorAgreement) -> None:
    """Print the agreement that ``measure`` returned, shortened. JSON output has all of it."""
    say(
        f"{counted(agreement.items, 'item')}, {counted(agreement.votes, 'vote')} of"
        f" {counted(len(agreement.people), 'annotator')}"
    )
    if agreement.repeated:
        earlier = counted(
            agreement.repeated,
            "earlier vote of a person on an item was",
            "earlier votes of a person on an item were",
        )
        say(f"  {earlier} replaced by that person's later one", "yellow")
    say(alpha_line(agreement))
    console.print(_people(agreement))
    for person in agreement.people:
        if flags(person):
            say(f"  {person.name}: {'; '.join(flags(person))}", "yellow")
    if agreement.position and agreement.position.decided:
        say(position_line(agreement.position), "yellow" if agreement.position.biased else None)
    if agreement.pairs:
        console.print(_pairs(agreement))
    if agreement.disputed:
        console.print(_disputed(agreement))


def alpha_line(agreement: AnnotatorAgreement) -> str:
    """A line with alpha and its interval, or with the reason why there is none."""
    alpha = agreement.alpha
    if alpha.value is not None:
        return (
            f"Krippendorff's alpha {alpha.value:.3f} [{alpha.low:.3f}, {alpha.high:.3f}] on"
            f" {counted(alpha.items, 'item')} with two votes or more"
        )
    if not alpha.items:
        return (
            "Krippendorff's alpha: none, no item has two votes. Have some items labeled by several"
            " people"
        )
    return (
        f"Krippendorff's alpha: none, all votes on the {counted(alpha.items, 'item')} with two or"
        " more are alike"
    )


def position_line(position: Position) -> str:
    """A line that says on how many items the response shown first is ahead."""
    text = (
        f"the response shown first is ahead on {position.first} of"
        f" {counted(position.decided, 'item')}, {_share(position)}, p = {position.p:.2g}"
    )
    bias = ": position bias, unless the order was not drawn at random"
    return text + bias if position.biased else text


def flags(person: Person) -> list[str]:
    """Warnings about a person's votes."""
    warnings = []
    if person.position and person.position.biased and person.position.share is not None:
        warnings.append(
            f"takes the {'first' if person.position.share > 0.5 else 'second'} shown too often"
        )
    if person.speed and person.speed.flagged:
        warnings.append(
            f"voted too fast on {person.speed.fast} of {counted(person.speed.timed, 'item')}"
        )
    return warnings


def _share(position: Position | None) -> str:
    if position is None or position.share is None:
        return "-"
    return f"{position.share:.1%} [{position.low:.1%}, {position.high:.1%}]"


def _people(agreement: AnnotatorAgreement) -> Table:
    table = Table(box=None, header_style="bold")
    thumbs = any("up" in person.shares for person in agreement.people)
    table.add_column("annotator", overflow="fold", min_width=12)
    columns = ["votes", "up" if thumbs else "ties", "agrees", "first shown wins", "s a vote"]
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for person in agreement.people:
        seconds = person.speed.median if person.speed else None
        table.add_row(
            person.name,
            f"{person.votes:,}",
            f"{person.shares['up' if thumbs else 'tie']:.1%}",
            "-" if person.agree is None else f"{person.agree:.1%}",
            _share(person.position),
            "-" if seconds is None else f"{seconds:.1f}",
        )
    return table


def _pairs(agreement: AnnotatorAgreement) -> Table:
    count = len(agreement.pairs)
    more = f", {_MOST_PAIRS} of {count} pairs with most shared items" if count > _MOST_PAIRS else ""
    table = Table(title=f"Cohen's kappa{more}", title_justify="left", box=None, header_style="bold")
    for column in ("annotators", "shared items", "same vote", "kappa"):
        table.add_column(column, justify="left" if column == "annotators" else "right")
    for pair in agreement.pairs[:_MOST_PAIRS]:
        value = "-" if pair.value is None else f"{pair.value:.3f}"
        table.add_row(f"{pair.a}, {pair.b}", f"{pair.items:,}", f"{pair.agree:.1%}", value)
    return table


def _disputed(agreement: AnnotatorAgreement) -> Table:
    table = Table(title="most disputed", title_justify="left", box=None, header_style="bold")
    table.add_column("item", overflow="fold")
    for category in agreement.disputed[0].counts:
        table.add_column(category, justify="right")
    for item in agreement.disputed:
        table.add_row(item.id, *map(str, item.counts.values()))
    return table
