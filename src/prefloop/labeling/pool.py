"""Pools of pairs that nobody has voted on: read from a file, without pairs that are labeled
already.

A pool is a file of comparisons in any layout, or of candidates as the sample stage writes them:
each row has a prompt and any number of responses. Pairs of candidates are named ``<id>/<i>-<j>#``
and 8 hex digits of their texts.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from prefloop.data.check import BadRow, Finding, check_strings
from prefloop.data.files import read_rows
from prefloop.data.prompts import prompt_of
from prefloop.data.reading import id_of
from prefloop.data.replies import differ, same_as
from prefloop.data.row import Row
from prefloop.data.source import Source
from prefloop.data.sources import load_comparisons
from prefloop.errors import DataError
from prefloop.records import Comparison, Conversation, Message, Response, from_dict, identity

_EXPECTED = "Expected candidates: id, prompt, responses"


@dataclasses.dataclass(frozen=True)
class Pool:
    """Pairs without votes to choose from, and counts of the pairs left out."""

    pairs: list[Comparison]
    voted: int = 0
    """Pairs that have votes in the pool's own file."""
    labeled: int = 0
    """Pairs that are in the labeled file, by id or by content."""


def content_of(comparison: Comparison) -> bytes:
    """A hash of the prompt and the two responses, the same in either order of the responses."""
    contents = sorted(map(same_as, comparison.responses), key=lambda c: (str(type(c)), str(c)))
    text = json.dumps([identity(comparison.prompt), contents])
    return hashlib.blake2b(text.encode("ascii"), digest_size=16).digest()


def read_pool(
    path: Source | Path, labeled: Source | Path | None = None, layout: str = "auto"
) -> Pool:
    """The pairs of a file that have no votes and are not in ``labeled``.

    Raises ``DataError`` when a row is neither a comparison nor candidates, or when no pair is left.
    """
    pairs = (
        list(candidates_of(path))
        if holds_candidates(path)
        else load_comparisons(path, layout=layout).records
    )
    done = load_comparisons(labeled).records if labeled else []
    pool = unlabelled(pairs, done)
    if not pool.pairs:
        raise DataError(
            f"'{path}': none of its {len(pairs)} pairs is left to label ({pool.voted} have votes,"
            f" {pool.labeled} are in the labeled file): give a pool of pairs without votes, such"
            " as candidates or rows with 'prompt' and 'responses'; 'chosen' and 'rejected' are a"
            " vote"
        )
    return pool


def unlabelled(pairs: Sequence[Comparison], done: Iterable[Comparison]) -> Pool:
    """The ``pairs`` that have no votes and are not in ``done`` by id or content. Equal pairs are
    taken once.
    """
    ids, contents = set(), set()
    for comparison in done:
        ids.add(comparison.id)
        contents.add(content_of(comparison))
    kept: list[Comparison] = []
    voted = labeled = 0
    for pair in pairs:
        content = content_of(pair)
        if pair.votes:
            voted += 1
        elif pair.id in ids or content in contents:
            labeled += 1
        else:
            kept.append(pair)
            contents.add(content)
    return Pool(kept, voted, labeled)


def holds_candidates(path: Source | Path) -> bool:
    """Whether any of the first rows has a list of responses that is not a pair."""
    first = (row.value for row in itertools.islice(read_rows(path), 200))
    lists = (row.get("responses") for row in first if isinstance(row, dict))
    return any(isinstance(responses, list) and len(responses) != 2 for responses in lists)


def named(pair: Comparison) -> Comparison:
    """The pair with a hash of its texts in its id. Different rounds, and runs that share a dataset,
    sample other texts under the same numbers.
    """
    return dataclasses.replace(pair, id=f"{pair.id}#{content_of(pair).hex()[:8]}")


def candidates_of(path: Source | Path) -> Iterator[Comparison]:
    """Every pair of different responses in a source of candidates. Raises ``DataError`` naming a
    row that holds none.
    """
    for row in read_rows(path):
        try:
            if row.problem is not None:
                raise BadRow("", row.problem)
            given = row.value.get("responses")
            if not isinstance(given, list):
                raise BadRow("responses", "is missing or no list")
            responses = [
                Response(item) if isinstance(item, str) else from_dict(Response, item)
                for item in given
            ]
            asked = {key: value for key, value in row.value.items() if key != "responses"}
            check_strings(asked)
            for index, response in enumerate(responses):
                # A model may write NUL.
                check_strings(response.text.replace("\x00", ""), f"responses.{index}")
            if "id" not in asked:
                raise BadRow("id", "is missing")
            prompt = prompt_of(Row(asked, id_of(asked["id"])))
        except BadRow as bad:
            raise DataError(
                f"{path}, {Finding(row.number, None, bad.field, bad.problem)}. {_EXPECTED}"
            ) from None
        except ValueError as error:
            raise DataError(f"{path}, row {row.number}: {error}. {_EXPECTED}") from None
        yield from map(named, pairs_of(str(asked["id"]), prompt, responses))


def pairs_of(id: str, prompt: list[Message], responses: Sequence[Response]) -> Iterator[Comparison]:
    """Every pair of two different responses that are not empty."""
    for i, j in itertools.combinations(range(len(responses)), 2):
        one, other = responses[i], responses[j]
        if one.text.strip() and other.text.strip() and differ(one, other):
            yield Comparison(f"{id}/{i}-{j}", Conversation.of(prompt), [one, other])
