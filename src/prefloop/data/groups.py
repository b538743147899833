"""Comparisons → tokenised groups in an Arrow file that is mapped, not read: memory does not grow with the number of pairs.

What stays in memory is an index: for every prompt a hash and where its comparisons stand in their file, for every group how many pairs
it has. Rows go through one at a time.
"""

from __future__ import annotations

import bisect
import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

from datasets import Dataset, Features, List, Value
from datasets.arrow_writer import ArrowWriter

from prefloop.console import progress, say
from prefloop.data.convert import net_thumbs
from prefloop.data.encode import Encoder, PreferenceGroup, ThumbGroup, preference_groups
from prefloop.data.packing import Document, document_of
from prefloop.errors import DataError
from prefloop.records import Comparison, Rating, Response, from_dict
from prefloop.store import Artifact, read_rows, write_rows

_FEATURES = Features(
    {
        "prompt_ids": List(Value("int32")),
        "responses_ids": List(List(Value("int32"))),
        "learn": List(List(Value("bool"))),
        "first": List(Value("int32")),
        "second": List(Value("int32")),
        "label": List(Value("float64")),
        "weight": List(Value("float64")),
        "up": List(Value("bool")),
        "key": Value("int64"),
        "ids": List(Value("string")),
    }
)
Label = Callable[[Comparison], float | None]


class Groups(Sequence[PreferenceGroup]):
    """The groups of an Arrow file written by ``write_groups`` or ``write_thumbs``; rows are read when they are asked for."""

    def __init__(self, path: Path, indices: Sequence[int] | None = None) -> None:
        self.path = path
        self._rows = Dataset.from_file(str(path))
        self.indices = range(len(self._rows)) if indices is None else indices
        self._sizes: dict[str, array[int]] = {}

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, index: int) -> PreferenceGroup: ...
    @overload
    def __getitem__(self, index: slice) -> Groups: ...
    def __getitem__(self, index: int | slice) -> PreferenceGroup | Groups:
        if isinstance(index, slice):
            return self.subset(range(len(self))[index])
        row = self._rows[self.indices[index]]
        return PreferenceGroup(
            _document(row), list(zip(row["first"], row["second"], row["label"], row["weight"], strict=True))
        )

    def thumbs(self, index: int) -> ThumbGroup:
        """The rated responses of a group."""
        row = self._rows[self.indices[index]]
        return ThumbGroup(_document(row), row["up"])

    def subset(self, positions: Sequence[int]) -> Groups:
        """These groups only, in this order, still on disk."""
        return Groups(self.path, array("q", (self.indices[i] for i in positions)))

    def pairs(self, index: int) -> int:
        """Number of pairs of a group, without reading it."""
        return self._size("first", index)

    def rated(self, index: int) -> int:
        """Number of rated responses of a group, without reading it."""
        return self._size("up", index)

    def _size(self, column: str, index: int) -> int:
        if column not in self._sizes:
            whole = self._rows.data.column(column)
            lengths = array("i", (n for chunk in whole.chunks for n in chunk.value_lengths().to_pylist()))
            self._sizes[column] = array("i", (lengths[i] for i in self.indices))
        return self._sizes[column][index]

    def ids_of(self, keys: Iterable[int]) -> list[str]:
        """Ids of the rows behind responses, by the responses' keys."""
        first_keys = self._rows.data.column("key").to_pylist()
        rows = dict.fromkeys(bisect.bisect_right(first_keys, key) - 1 for key in keys)
        return [id for row in rows for id in self._rows[row]["ids"]]

    @property
    def total_pairs(self) -> int:
        return sum(self.pairs(i) for i in range(len(self)))

    @property
    def total_responses(self) -> int:
        return sum(self._size("responses_ids", i) for i in range(len(self)))


def _document(row: dict[str, Any]) -> Document:
    keys = range(row["key"], row["key"] + len(row["responses_ids"]))
    return Document(row["prompt_ids"], row["responses_ids"], list(keys), row["learn"] or None)


def _tokens(document: Document) -> dict[str, Any]:
    """A document's columns in the file; ``learn`` is empty where every token of its responses is learnt."""
    return {
        "prompt_ids": document.prompt_ids,
        "responses_ids": list(document.responses_ids),
        "learn": list(document.learn or []),
    }


def write_groups(
    comparisons: Path,
    target: Path,
    encoder: Encoder,
    label: Label,
    weight: Callable[[Comparison], float] | None = None,
    quarantine: Path | None = None,
) -> Groups:
    """Tokenise a comparisons file into ``target``, comparisons of one prompt together, in order of first appearance.

    ``label`` gives the probability that a comparison's first response is better (None counts as 0.5), ``weight`` what it counts for; weights
    are scaled to mean 1. Prompts that leave no room for a response are an error, or go to ``quarantine`` by id. Raises ``DataError`` when no
    pair is left.
    """
    mean = _mean_weight(comparisons, weight) if weight else 1.0

    def rows(found: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        records = [from_dict(Comparison, row) for row in found]
        labels = [0.5 if p is None else p for p in map(label, records)]
        weights = [weight(record) / mean for record in records] if weight else None
        for group in preference_groups(records, labels, encoder, weights):
            first, second, soft, weighed = (list(column) for column in zip(*group.pairs, strict=True))
            pairs = {"first": first, "second": second, "label": soft, "weight": weighed, "up": []}
            yield {**_tokens(group.document), **pairs}

    return _write(comparisons, target, rows, "pair of two different responses", quarantine)


def write_thumbs(ratings: Path, target: Path, encoder: Encoder, quarantine: Path | None = None) -> Groups:
    """Tokenise a ratings file into ``target``: the responses to one prompt together, each with the thumb that most of its votes amount to.

    Responses with as many thumbs up as down are left out. Raises ``DataError`` when none is left.
    """

    def rows(found: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        records = [from_dict(Rating, row) for row in found]
        net: Counter[str] = Counter()
        answers: dict[str, tuple[str, Response]] = {}
        for record in records:
            answers.setdefault(record.response.key(), (record.id, record.response))
            net[record.response.key()] += net_thumbs(record.votes)
        decided = {key: n > 0 for key, n in net.items() if n}
        if decided:
            prompt = records[0].prompt
            prompt_ids = encoder.prompt(records[0].id, prompt)
            given = map(answers.__getitem__, decided)
            tokens = [encoder.response(id, prompt, answer, len(prompt_ids)) for id, answer in given]
            nothing: dict[str, list[Any]] = {"first": [], "second": [], "label": [], "weight": []}
            yield {**_tokens(document_of(prompt_ids, tokens)), **nothing, "up": list(decided.values())}

    return _write(ratings, target, rows, "response with a decided thumb", quarantine)


def _write(
    source: Path,
    target: Path,
    rows: Callable[[list[dict[str, Any]]], Iterator[dict[str, Any]]],
    wanted: str,
    quarantine: Path | None,
) -> Groups:
    prompts = _by_prompt(source)
    partial = target.with_suffix(".partial")
    writer = ArrowWriter(path=str(partial), features=_FEATURES, writer_batch_size=200)
    key = 0
    set_aside: list[dict[str, Any]] = []
    with source.open("rb") as file, progress("tokenise", len(prompts), "prompt") as advance:
        for offsets in prompts.values():
            found = [_at(file, offset) for offset in offsets]
            try:
                for row in rows(found):
                    writer.write({**row, "key": key, "ids": [str(record["id"]) for record in found]})
                    key += len(row["responses_ids"])
            except DataError as error:
                if quarantine is None:
                    raise
                set_aside += [{"id": row["id"], "problem": str(error)} for row in found]
            advance()
    writer.finalize()
    writer.close()
    if quarantine is not None and set_aside:
        write_rows(quarantine, set_aside)
        say(f"  {len(set_aside)} rows set aside in {quarantine.name}: {set_aside[0]['problem']}", "yellow")
    if key == 0:
        partial.unlink(missing_ok=True)
        raise DataError(f"'{source.name}' holds no {wanted} within backbone.max_length")
    partial.replace(target)
    return Groups(target)


def _by_prompt(source: Path) -> dict[bytes, array[int]]:
    """Where the rows of each prompt stand in the file."""
    prompts: dict[bytes, array[int]] = {}
    offset = 0
    with source.open("rb") as file:
        for line in file:
            row = json.loads(line)
            prompt = json.dumps([row["prompt"], row.get("tools")]).encode()
            prompts.setdefault(hashlib.blake2b(prompt, digest_size=16).digest(), array("q")).append(offset)
            offset += len(line)
    return prompts


def _mean_weight(comparisons: Path, weight: Callable[[Comparison], float]) -> float:
    total, count = 0.0, 0
    for row in read_rows(comparisons):
        total, count = total + weight(from_dict(Comparison, row)), count + 1
    if total <= 0:
        raise DataError(f"'{comparisons.name}': every pair has weight 0: choose other preference.weights")
    return total / count


def _at(file: Any, offset: int) -> dict[str, Any]:
    file.seek(offset)
    return json.loads(file.readline())


def quarantine_of(comparisons: Artifact, folder: Path) -> Path | None:
    """Where a stage puts rows that it cannot use, when the labels were read with ``bad_rows: quarantine``."""
    return folder / "too-long.quarantine.jsonl" if comparisons.metrics.get("bad_rows") == "quarantine" else None


def documents(groups: Sequence[PreferenceGroup]) -> Iterator[Document]:
    """The documents of groups, one at a time."""
    return (group.document for group in groups)
