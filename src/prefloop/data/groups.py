"""Comparisons → tokenised groups in an Arrow file that is mapped, not read: memory does not grow
with the number of pairs.

What stays in memory is an index: for every prompt a hash and where its comparisons stand in their
file, for every group how many pairs it has. Rows go through one at a time.
"""

from __future__ import annotations

import bisect
import dataclasses
import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

from datasets import Dataset, Features, List, Value
from datasets.arrow_writer import ArrowWriter

from prefloop.base.console import counted, progress, say
from prefloop.base.jsonl import read_rows
from prefloop.data.convert import net_thumbs
from prefloop.data.encode import Encoder, PreferenceGroup, ThumbGroup, preference_groups
from prefloop.data.packing import Document, document_of
from prefloop.data.quarantine import Unusable
from prefloop.data.tokens import Tokens
from prefloop.errors import DataError
from prefloop.records import Comparison, Rating, Response, from_dict

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


@dataclasses.dataclass
class LeftOut:
    """What a file holds and nothing can be learnt from."""

    read: int = 0
    """Rows of the file."""
    equal: int = 0
    """Pairs, or thumbs on responses with opposite ones, that are the same tokens once cut to
    ``max_length``.
    """
    repeated: int = 0
    """Pairs of one response with itself."""
    undecided: int = 0
    """Thumbs on responses with as many up as down."""
    unusable: int = 0
    """Rows that the encoder refused; they are in a file of their own."""

    def lines(self, what: str, max_length: int) -> list[str]:
        """A sentence for each kind of row that a model can take and that is left out."""
        of = f"of {counted(self.read, what)}"
        kinds = (
            (
                self.equal,
                (
                    f"equal once cut to max_length ({max_length} tokens) and {{}} left out: raise"
                    " backbone.max_length"
                ),
            ),
            (self.repeated, "of one response with itself and {} left out"),
            (self.undecided, "of a response with as many thumbs up as down and {} not used"),
        )
        words = ("is", "was"), ("are", "were")
        return [
            f"{n} {of} {words[n > 1][0]} {text.format(words[n > 1][1])}" for n, text in kinds if n
        ]

    def metrics(self) -> dict[str, int]:
        """By name, what there is of it."""
        named = {f"{name}_rows": count for name, count in dataclasses.asdict(self).items() if count}
        return named if len(named) > 1 else {}


class Groups(Sequence[PreferenceGroup]):
    """The groups of an Arrow file written by ``write_groups`` or ``write_thumbs``; rows are read
    when they are asked for.
    """

    def __init__(
        self, path: Path, indices: Sequence[int] | None = None, left_out: LeftOut | None = None
    ) -> None:
        self.path = path
        self.left_out = left_out or LeftOut()
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
            _document(row),
            list(zip(row["first"], row["second"], row["label"], row["weight"], strict=True)),
        )

    def thumbs(self, index: int) -> ThumbGroup:
        """The rated responses of a group."""
        row = self._rows[self.indices[index]]
        return ThumbGroup(_document(row), row["up"])

    def subset(self, positions: Sequence[int]) -> Groups:
        """These groups only, in this order, still on disk."""
        return Groups(self.path, array("q", (self.indices[i] for i in positions)), self.left_out)

    def pairs(self, index: int) -> int:
        """Number of pairs of a group, without reading it."""
        return self._size("first", index)

    def rated(self, index: int) -> int:
        """Number of rated responses of a group, without reading it."""
        return self._size("up", index)

    def _size(self, column: str, index: int) -> int:
        if column not in self._sizes:
            whole = self._rows.data.column(column)
            lengths = array(
                "i", (n for chunk in whole.chunks for n in chunk.value_lengths().to_pylist())
            )
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
    """A document's columns in the file; ``learn`` is empty where every token of its responses is
    learnt.
    """
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
    unusable: Unusable | None = None,
) -> Groups:
    """Tokenise a comparisons file into ``target``, comparisons of one prompt together, in order of
    first appearance.

    ``label`` gives the probability that a comparison's first response is better (None counts as
    0.5), ``weight`` what it counts for; weights are scaled to mean 1. Rows that the encoder refuses
    go to ``unusable``: an error that counts them unless it sets them aside. Pairs that are equal
    once cut are left out, counted and said. Raises ``DataError`` when no pair is left.
    """
    mean = _mean_weight(comparisons, weight) if weight else 1.0

    left_out, refused = LeftOut(), unusable or Unusable(None)

    def rows(found: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        records = [from_dict(Comparison, row) for row in found]
        kept = 0
        gone: set[str] = set()

        def refuse(id: str, error: DataError) -> None:
            gone.add(id)
            refused.add([id], error)

        labels = [0.5 if p is None else p for p in map(label, records)]
        weights = [weight(record) / mean for record in records] if weight else None
        for group in preference_groups(records, labels, encoder, weights, refuse):
            kept += len(group.pairs)
            first, second, soft, weighed = (
                list(column) for column in zip(*group.pairs, strict=True)
            )
            pairs = {"first": first, "second": second, "label": soft, "weight": weighed, "up": []}
            yield {**_tokens(group.document), **pairs}
        taken = [pair for pair in records if pair.id not in gone]
        same = sum(pair.responses[0].key() == pair.responses[1].key() for pair in taken)
        left_out.repeated += same
        left_out.equal += len(taken) - kept - same

    return _write(
        comparisons,
        target,
        rows,
        ("pair", "pair of two different responses"),
        encoder,
        left_out,
        refused,
    )


def write_thumbs(
    ratings: Path, target: Path, encoder: Encoder, unusable: Unusable | None = None
) -> Groups:
    """Tokenise a ratings file into ``target``: the responses to one prompt together, each with the
    thumb that most of its votes amount to.

    Responses with as many thumbs up as down are left out, and so are those with opposite thumbs
    that are equal once cut; both are counted and said. ``unusable`` as in ``write_groups``. Raises
    ``DataError`` when none is left.
    """
    left_out, refused = LeftOut(), unusable or Unusable(None)

    def rows(found: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        records = [from_dict(Rating, row) for row in found]
        prompt_ids = encoder.prompt(records[0].id, records[0].prompt)
        net: Counter[str] = Counter()
        rows_of: dict[str, list[str]] = {}
        answers: dict[str, Response] = {}
        for record in records:
            key = record.response.key()
            answers[key] = record.response
            net[key] += net_thumbs(record.votes)
            rows_of.setdefault(key, []).append(record.id)
        left_out.undecided += sum(len(rows_of[key]) for key in answers if not net[key])
        encoded: dict[str, Tokens] = {}
        for key in (key for key in answers if net[key]):
            try:
                encoded[key] = encoder.response(
                    rows_of[key][0], records[0].prompt, answers[key], len(prompt_ids)
                )
            except DataError as error:
                refused.add(rows_of[key], error)
        thumbs: dict[tuple[int, ...], set[bool]] = {}
        for key, found_ids in encoded.items():
            thumbs.setdefault(tuple(found_ids.ids), set()).add(net[key] > 0)
        both = {key for key, found_ids in encoded.items() if len(thumbs[tuple(found_ids.ids)]) > 1}
        left_out.equal += sum(len(rows_of[key]) for key in both)
        kept = [key for key in encoded if key not in both]
        if kept:
            nothing: dict[str, list[Any]] = {"first": [], "second": [], "label": [], "weight": []}
            document = document_of(prompt_ids, [encoded[key] for key in kept])
            yield {**_tokens(document), **nothing, "up": [net[key] > 0 for key in kept]}

    return _write(
        ratings,
        target,
        rows,
        ("thumb", "response with a decided thumb"),
        encoder,
        left_out,
        refused,
    )


def _write(
    source: Path,
    target: Path,
    rows: Callable[[list[dict[str, Any]]], Iterator[dict[str, Any]]],
    what: tuple[str, str],
    encoder: Encoder,
    left_out: LeftOut,
    unusable: Unusable,
) -> Groups:
    """``what`` names a row, and what is wanted of it."""
    prompts = _by_prompt(source)
    left_out.read = sum(map(len, prompts.values()))
    partial = target.with_suffix(".partial")
    writer = ArrowWriter(path=str(partial), features=_FEATURES, writer_batch_size=200)
    key = 0
    with source.open("rb") as file, progress("tokenise", len(prompts), "prompt") as advance:
        for offsets in prompts.values():
            found = [_at(file, offset) for offset in offsets]
            try:
                for row in rows(found):
                    writer.write(
                        {**row, "key": key, "ids": [str(record["id"]) for record in found]}
                    )
                    key += len(row["responses_ids"])
            except DataError as error:
                unusable.add((str(row["id"]) for row in found), error)
            advance()
    writer.finalize()
    writer.close()
    left_out.unusable = unusable.count
    lines = left_out.lines(what[0], encoder.max_length)
    try:
        unusable.settle(left_out.read)
        if key == 0:
            because = "; ".join([*lines, unusable.first] if unusable.first else lines)
            raise DataError(
                f"no {what[1]} is left of {counted(left_out.read, what[0])}"
                + (f": {because}" if because else "")
            )
    except DataError:
        partial.unlink(missing_ok=True)
        raise
    for line in lines:
        say(f"  {line}", "yellow")
    partial.replace(target)
    return Groups(target, left_out=left_out)


def _by_prompt(source: Path) -> dict[bytes, array[int]]:
    """Where the rows of each prompt stand in the file."""
    prompts: dict[bytes, array[int]] = {}
    offset = 0
    with source.open("rb") as file:
        for line in file:
            row = json.loads(line)
            # As ``records.prompt_key`` has it: whether a turn is learnt makes no other prompt of
            # it.
            turns = [
                {key: value for key, value in turn.items() if key != "learn"}
                for turn in row["prompt"]
            ]
            prompt = json.dumps([turns, row.get("tools")], sort_keys=True).encode()
            prompts.setdefault(hashlib.blake2b(prompt, digest_size=16).digest(), array("q")).append(
                offset
            )
            offset += len(line)
    return prompts


def _mean_weight(comparisons: Path, weight: Callable[[Comparison], float]) -> float:
    total, count = 0.0, 0
    for row in read_rows(comparisons):
        total, count = total + weight(from_dict(Comparison, row)), count + 1
    if total <= 0:
        raise DataError(
            f"'{comparisons.name}': every pair has weight 0: choose other preference.weights"
        )
    return total / count


def _at(file: Any, offset: int) -> dict[str, Any]:
    file.seek(offset)
    return json.loads(file.readline())


def documents(groups: Sequence[PreferenceGroup]) -> Iterator[Document]:
    """The documents of groups, one at a time."""
    return (group.document for group in groups)
