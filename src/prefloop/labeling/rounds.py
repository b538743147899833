"""A round of votes through Argilla: send the pairs, wait for the annotators, take the votes.

Every step can be killed and repeated: pairs on the server are not sent again, votes stay there, and
nothing is written before there are enough.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence

from prefloop.base.console import counted, duration, progress, say
from prefloop.base.interrupt import pause
from prefloop.config import LabelConfig
from prefloop.errors import DataError, LabelError
from prefloop.labeling.argilla.connection import Connection, is_away
from prefloop.labeling.argilla.forms import read_guidelines, untakeable
from prefloop.labeling.argilla.records import Argilla, Progress
from prefloop.records import Comparison, Vote


@dataclasses.dataclass(frozen=True)
class Round:
    """The result of a round."""

    comparisons: list[Comparison]
    """The round's pairs that have votes, in the round's order, each with all its votes."""
    refused: int
    """Pairs that Argilla does not take."""
    unlabelled: int
    drafts: int
    discards: int
    others: int
    """Votes of people on pairs for simulated annotators. They are left out."""


def connect(config: LabelConfig) -> Argilla:
    """The server that the settings name. Raises ``LabelError`` where no address or key is known."""
    return Argilla(Connection.find(config.home, config.url))


def collect_round(
    config: LabelConfig,
    dataset: str,
    pairs: Sequence[Comparison],
    simulated: Mapping[str, Mapping[str, Vote]],
) -> Round:
    """Push ``pairs``, let ``simulated`` annotators (name → pair id → vote) answer, wait until
    ``config.enough`` of the pairs are complete, and return the pairs that have votes.

    Where there are simulated annotators, only their votes are taken. Raises ``LabelError`` for a
    server that refuses, and for votes of simulated annotators where people should vote;
    ``DataError`` when no pair has votes.
    """
    workspace, refused = config.workspace, untakeable(pairs)
    refused_ids = {pair.id for pair, _ in refused}
    unvoted = [dataclasses.replace(pair, votes=[]) for pair in pairs if pair.id not in refused_ids]
    if refused:
        first, why = refused[0]
        say(f"  {counted(len(refused), 'pair')} set aside, the first '{first.id}': {why}", "yellow")
    if not unvoted:
        raise DataError(f"Argilla takes none of the round's {len(pairs)} pairs: {refused[0][1]}")
    guidelines = read_guidelines(config.guidelines) if config.guidelines else None
    ids = [pair.id for pair in unvoted]
    with connect(config) as argilla:
        pushed = argilla.push(unvoted, dataset, workspace, guidelines, config.min_submitted)
        present = f" ({pushed.present} were there)" if pushed.present else ""
        say(
            f"  {counted(pushed.sent, 'pair')} sent to {argilla.rest.connection.url}, dataset"
            f" {workspace}/{dataset}{present}"
        )
        for annotator, votes in simulated.items():
            argilla.vote(dataset, annotator, {id: votes[id] for id in ids}, workspace)
    _wait(config, dataset, ids)
    with connect(config) as argilla:  # the server's address may have changed during the wait
        pulled = argilla.pull(dataset, workspace, ids, simulated=True)
        machines = set() if simulated else argilla.simulated(dataset, workspace)
    by_id = {record.id: record for record in pulled.records if isinstance(record, Comparison)}
    others = 0
    if simulated:
        kept = {id: _votes_of(record, simulated) for id, record in by_id.items()}
        others = sum(len(by_id[id].votes) - len(record.votes) for id, record in kept.items())
        by_id = {id: record for id, record in kept.items() if record.votes}
    elif mixed := machines & {vote.annotator for record in by_id.values() for vote in record.votes}:
        raise LabelError(
            f"dataset '{workspace}/{dataset}' holds votes of simulated annotators"
            f" ({', '.join(sorted(mixed))}) on these pairs, and people are to vote: name another"
            " dataset"
        )
    comparisons = [by_id[id] for id in ids if id in by_id]
    if not comparisons:
        raise DataError(
            f"dataset '{dataset}': none of the round's {len(ids)} pairs has a vote any more: run"
            " the same command again to wait for new ones"
        )
    return Round(
        comparisons,
        refused=len(refused),
        unlabelled=len(ids) - len(comparisons),
        drafts=pulled.drafts,
        discards=pulled.discards,
        others=others,
    )


def _votes_of(record: Comparison, names: Mapping[str, object]) -> Comparison:
    """The comparison with the votes of ``names`` only. Their times are dropped, because the time of
    a program's vote says nothing about haste.
    """
    votes = [dataclasses.replace(vote, at=None) for vote in record.votes if vote.annotator in names]
    return dataclasses.replace(record, votes=votes)


def _wait(config: LabelConfig, dataset: str, ids: Sequence[str]) -> None:
    """Wait until enough of the pairs are complete. The wait goes on while the server is silent for
    up to ``config.patience``; an error that the server returns ends it.
    """
    argilla, workspace = connect(config), config.workspace
    states = argilla.states(dataset, ids, workspace)
    complete, wanted = _standing(states, ids, config)
    if complete >= wanted:
        return
    say(
        f"  waiting for votes on {wanted} of {len(ids)} pairs. Ctrl-C is safe: votes stay in"
        " Argilla, and the same command goes on",
        "yellow",
    )
    silent_since, seen = None, None
    with progress("  labels", wanted, "pairs", done=complete) as advance:
        while complete < wanted:
            pause(config.poll_seconds)
            try:
                if silent_since is not None:
                    argilla.rest.close()
                    argilla = connect(config)
                now = argilla.progress(dataset, workspace)
                silent_since = None
                if now == seen:
                    continue
                states = argilla.states(dataset, ids, workspace)
            except LabelError as error:
                if not is_away(error):
                    raise
                if silent_since is None:
                    say(f"  {error}; waiting for it", "yellow")
                    silent_since = time.monotonic()
                if time.monotonic() - silent_since > config.patience:
                    raise LabelError(
                        f"{error}. It has been silent for {duration(config.patience)}"
                        " (label.patience): start it and run the same command, which goes on"
                        " waiting"
                    ) from None
                continue
            before, seen = complete, now
            complete, wanted = _standing(states, ids, config)
            deleted = len(ids) - len(states)
            note = f", {deleted} pairs deleted on the server" if deleted > 0 else ""
            advance(complete - before, _by_whom(now) + note)


def _standing(
    states: Mapping[str, bool], ids: Sequence[str], config: LabelConfig
) -> tuple[int, int]:
    """The number of complete pairs, and how many must be. Pairs that somebody has deleted on the
    server do not count.
    """
    present = sum(id in states for id in ids)
    if not present:
        raise LabelError(
            f"Argilla holds none of the round's {len(ids)} pairs any more: run the same command"
            " again to send them"
        )
    wanted = max(1, math.ceil(config.enough * present - 1e-9))
    return sum(states.get(id, False) for id in ids), wanted


def _by_whom(state: Progress) -> str:
    """The number of answers of each annotator, for the progress line."""
    answers = sorted(
        ((counts.get("submitted", 0), name) for name, counts in state.annotators.items()),
        reverse=True,
    )
    return ", ".join(f"{name} {count}" for count, name in answers if count)
