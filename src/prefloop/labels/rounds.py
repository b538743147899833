"""A round of votes through Argilla: send the pairs, wait for the annotators, take the votes.

Everything can be killed and repeated: pairs that are there are not sent again, votes stay on the server, and nothing is written before
there are enough.
"""

from __future__ import annotations

import dataclasses
import math
import threading
from collections.abc import Mapping, Sequence

from prefloop.config import LabelConfig
from prefloop.console import progress, say
from prefloop.errors import DataError, LabelError
from prefloop.interrupt import check_interrupted
from prefloop.labels.argilla import Argilla, Progress, Pulled
from prefloop.labels.connection import Connection, Refused
from prefloop.records import Comparison, Vote


@dataclasses.dataclass(frozen=True)
class Round:
    """What came back."""

    comparisons: list[Comparison]
    """Those of the round's pairs that have votes, in the round's order, each with all its votes."""
    unlabelled: int
    drafts: int
    discards: int


def connect(config: LabelConfig) -> Argilla:
    """The server that the settings name. Raises ``LabelError`` where no address or key can be found."""
    return Argilla(Connection.find(config.home, config.url))


def collect_round(
    argilla: Argilla, config: LabelConfig, pairs: Sequence[Comparison], simulated: Mapping[str, Mapping[str, Vote]]
) -> Round:
    """Push ``pairs`` to ``config.dataset``, let ``simulated`` annotators (name → pair id → vote) answer, wait until ``config.enough`` of the
    pairs are complete, and return what has votes then. Raises ``LabelError`` for a server that refuses, ``DataError`` when nothing has votes.
    """
    dataset, workspace = str(config.dataset), config.workspace
    guidelines = config.guidelines.read_text(encoding="utf-8") if config.guidelines else None
    bare = [dataclasses.replace(pair, votes=[]) for pair in pairs]
    pushed = argilla.push(bare, dataset, workspace, guidelines, config.min_submitted)
    there = f" ({pushed.present} were there)" if pushed.present else ""
    say(f"  {pushed.sent} pairs sent to {argilla.rest.connection.url}, dataset {workspace}/{dataset}{there}")
    for annotator, votes in simulated.items():
        argilla.vote(dataset, annotator, votes, workspace)
    ids = [pair.id for pair in pairs]
    _wait(argilla, config, ids)
    found = argilla.pull(dataset, workspace)
    return _of_round(found, ids, dataset)


def _of_round(found: Pulled, ids: Sequence[str], dataset: str) -> Round:
    by_id = {record.id: record for record in found.records if isinstance(record, Comparison)}
    kept = [by_id[id] for id in ids if id in by_id]
    if not kept:
        raise DataError(
            f"dataset '{dataset}': none of the round's {len(ids)} pairs has a vote any more: run the same command again to wait for new ones"
        )
    return Round(kept, len(ids) - len(kept), found.drafts, found.discards)


def _wait(argilla: Argilla, config: LabelConfig, ids: Sequence[str]) -> None:
    """Until enough of the pairs are complete. A server that does not answer for a while is waited for, a refusal is not."""
    dataset, workspace = str(config.dataset), config.workspace
    wanted = max(1, math.ceil(config.enough * len(ids) - 1e-9))
    complete = argilla.completed(dataset, ids, workspace)
    if complete >= wanted:
        return
    say(
        f"  waiting for votes on {wanted} of {len(ids)} pairs. Ctrl-C is safe: votes stay in Argilla, and the same command goes on",
        "yellow",
    )
    pause, silent, said = threading.Event(), False, ""
    with progress("  labels", wanted, "pairs", done=complete) as advance:
        while complete < wanted:
            pause.wait(config.poll_seconds)
            try:
                now = argilla.completed(dataset, ids, workspace)
                state = argilla.progress(dataset, workspace)
            except LabelError as error:
                if isinstance(error, Refused) and error.status < 500:
                    raise
                if not silent:
                    say(f"  {error}; waiting for it", "yellow")
                silent = True
                check_interrupted()
                continue
            silent, note = False, _by_whom(state)
            if (now, note) != (complete, said):
                advance(now - complete, note)
                complete, said = now, note
            check_interrupted()


def _by_whom(state: Progress) -> str:
    answers = sorted(((counts.get("submitted", 0), name) for name, counts in state.annotators.items()), reverse=True)
    return ", ".join(f"{name} {count}" for count, name in answers if count)
