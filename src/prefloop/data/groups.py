"""Comparisons and thumbs as token groups in an Arrow file. The file is mapped and not read, so
memory does not grow with the texts of the pairs.

A file of records is read twice. The first pass indexes it: where each row stands, which rows share
a prompt, and, of comparisons, their labels and weights. What it keeps is some numbers a row and a
hash a prompt. The second pass tokenizes prompt after prompt.
"""

from __future__ import annotations

import bisect
import dataclasses
import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Generic, TypedDict, TypeVar, overload

from datasets import Dataset, Features, List, Value
from datasets.arrow_writer import ArrowWriter

from prefloop.base.console import counted, progress, say
from prefloop.data.convert import net_thumbs
from prefloop.data.encode import (
    Encoder,
    LabeledPair,
    PreferenceGroup,
    ThumbGroup,
    preference_group,
)
from prefloop.data.packing import Document, document_of
from prefloop.data.quarantine import Unusable
from prefloop.data.tokens import Tokens
from prefloop.errors import DataError
from prefloop.records import Comparison, Rating, Response, from_dict, prompt_key

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
R = TypeVar("R", Comparison, Rating)
Labels = Callable[[Iterable[Comparison]], Iterable[float | None]]
"""From all comparisons of a file, read once, to P(first is better) of each, in order. ``None``
stands for a comparison without votes.
"""


class GroupRow(TypedDict):
    """A row of the Arrow file: a prompt, its distinct responses, and their pairs or thumbs."""

    prompt_ids: Sequence[int]
    responses_ids: Sequence[Sequence[int]]
    learn: Sequence[Sequence[bool]]
    """Empty where every token of the responses is learnt."""
    first: list[int]
    second: list[int]
    label: list[float]
    weight: list[float]
    up: list[bool]
    key: int
    """Key of the first response; the others follow."""
    ids: list[str]
    """Ids of the records behind the row."""


@dataclasses.dataclass
class LeftOut:
    """Counts of the rows from which nothing can be learnt."""

    read: int = 0
    """Rows of the file."""
    equal: int = 0
    """Pairs whose responses are the same tokens once cut to ``max_length``; thumbs that contradict
    each other on such responses.
    """
    repeated: int = 0
    """Pairs of one response with itself."""
    undecided: int = 0
    """Thumbs on responses with as many up as down."""
    unusable: int = 0
    """Rows that the encoder refused; they are in a file of their own."""

    def lines(self, what: str, max_length: int) -> list[str]:
        """A sentence for each kind of row that was left out though a model could take it."""
        of = f"of {counted(self.read, what)}"
        equal = (
            f"equal once cut to max_length ({max_length} tokens) and {{}} left out: raise"
            " backbone.max_length"
        )
        kinds = (
            (self.equal, equal),
            (self.repeated, "of one response with itself and {} left out"),
            (self.undecided, "of a response with as many thumbs up as down and {} not used"),
        )
        words = ("is", "was"), ("are", "were")
        return [
            f"{n} {of} {words[n > 1][0]} {text.format(words[n > 1][1])}" for n, text in kinds if n
        ]

    def metrics(self) -> dict[str, int]:
        """The counts that are not 0, by name; none where every row was used."""
        named = {f"{name}_rows": count for name, count in dataclasses.asdict(self).items() if count}
        return named if len(named) > 1 else {}


class Groups(Sequence[PreferenceGroup]):
    """The groups of an Arrow file that ``write_groups`` or ``write_thumbs`` wrote. A row is read
    when it is asked for.
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
        row: GroupRow = self._rows[self.indices[index]]
        columns = zip(row["first"], row["second"], row["label"], row["weight"], strict=True)
        return PreferenceGroup(_document(row), list(map(LabeledPair._make, columns)))

    def thumbs(self, index: int) -> ThumbGroup:
        """The rated responses of a group."""
        row: GroupRow = self._rows[self.indices[index]]
        return ThumbGroup(_document(row), row["up"])

    def subset(self, positions: Sequence[int]) -> Groups:
        """The groups at ``positions``, in that order, still on disk."""
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
        """Ids of the records behind the responses with these keys."""
        first_keys = self._rows.data.column("key").to_pylist()
        rows = dict.fromkeys(bisect.bisect_right(first_keys, key) - 1 for key in keys)
        return [id for row in rows for id in self._rows[row]["ids"]]

    @property
    def total_pairs(self) -> int:
        return sum(self.pairs(i) for i in range(len(self)))

    @property
    def total_responses(self) -> int:
        return sum(self._size("responses_ids", i) for i in range(len(self)))


def _document(row: GroupRow) -> Document:
    keys = range(row["key"], row["key"] + len(row["responses_ids"]))
    return Document(row["prompt_ids"], row["responses_ids"], list(keys), row["learn"] or None)


def _row(
    document: Document, pairs: Sequence[LabeledPair] = (), up: Sequence[bool] = ()
) -> GroupRow:
    return {
        "prompt_ids": document.prompt_ids,
        "responses_ids": list(document.responses_ids),
        "learn": list(document.learn or []),
        "first": [pair.first for pair in pairs],
        "second": [pair.second for pair in pairs],
        "label": [pair.label for pair in pairs],
        "weight": [pair.weight for pair in pairs],
        "up": list(up),
        "key": 0,
        "ids": [],
    }


class _File(Generic[R]):
    """A file of records, indexed by prompt once ``read`` has gone through it."""

    def __init__(self, path: Path, kind: type[R]) -> None:
        self.path = path
        self.kind: type[R] = kind
        self.offsets = array("q")
        self.numbers_of: dict[bytes, array[int]] = {}
        """A prompt's hash → numbers of its rows; prompts in order of first appearance."""

    def read(self) -> Iterator[R]:
        """Every record in order. The index is complete when all have been taken."""
        offset = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file):
                record = from_dict(self.kind, json.loads(line))
                prompt = bytes.fromhex(prompt_key(record.prompt))[:16]
                self.numbers_of.setdefault(prompt, array("L")).append(number)
                self.offsets.append(offset)
                offset += len(line)
                yield record

    def at(self, file: BinaryIO, number: int) -> R:
        """The record in row ``number``, counted from 0; ``file`` is this file, open."""
        file.seek(self.offsets[number])
        return from_dict(self.kind, json.loads(file.readline()))


def write_groups(
    comparisons: Path,
    target: Path,
    encoder: Encoder,
    labels: Labels,
    weight: Callable[[Comparison], float] | None = None,
    unusable: Unusable | None = None,
) -> Groups:
    """Tokenize a file of comparisons into ``target``. Comparisons of one prompt form a group, and
    groups are in order of first appearance.

    ``labels`` gives P(first is better) of every comparison; ``None`` counts as 0.5. ``weight``
    gives what a comparison counts for; weights are scaled to mean 1. Rows that the encoder refuses
    go to ``unusable``, which raises an error with their number unless it sets them aside. Pairs
    whose responses are equal once cut are left out, counted, and mentioned in the log. Raises
    ``DataError`` when no pair is left, or when every pair has weight 0.
    """
    file, weights = _File(comparisons, Comparison), array("d")

    def indexed() -> Iterator[Comparison]:
        for comparison in file.read():
            weights.append(weight(comparison) if weight else 1.0)
            yield comparison

    label_of = array("d", (0.5 if p is None else p for p in labels(indexed())))
    mean = _mean_weight(comparisons, weights)
    left_out, refused = LeftOut(), unusable or Unusable(None)

    def row_of(numbers: Sequence[int], records: list[Comparison]) -> GroupRow | None:
        refused_ids: set[str] = set()

        def refuse(id: str, error: DataError) -> None:
            refused_ids.add(id)
            refused.add([id], error)

        labeled = [
            (record, label_of[number], weights[number] / mean)
            for number, record in zip(numbers, records, strict=True)
        ]
        group = preference_group(labeled, encoder, refuse=refuse)
        taken = [record for record in records if record.id not in refused_ids]
        repeated = sum(pair.first.key() == pair.second.key() for pair in taken)
        left_out.repeated += repeated
        left_out.equal += len(taken) - repeated - (len(group.pairs) if group else 0)
        return _row(group.document, group.pairs) if group else None

    what = ("pair", "pair of two different responses")
    return _write(file, target, row_of, what, encoder, left_out, refused)


def write_thumbs(
    ratings: Path, target: Path, encoder: Encoder, unusable: Unusable | None = None
) -> Groups:
    """Tokenize a file of ratings into ``target``: the responses to one prompt together, each with
    the thumb that most of its votes give.

    Responses with as many thumbs up as down are left out, and so are responses with opposite
    thumbs that are equal once cut. Both are counted and mentioned in the log. ``unusable`` is as
    in ``write_groups``. Raises ``DataError`` when no response is left.
    """
    file, left_out, refused = _File(ratings, Rating), LeftOut(), unusable or Unusable(None)
    for _ in file.read():
        pass

    def row_of(numbers: Sequence[int], records: list[Rating]) -> GroupRow | None:
        prompt_ids = encoder.prompt(records[0].id, records[0].prompt)
        net: Counter[str] = Counter()
        ids_of: dict[str, list[str]] = {}
        answers: dict[str, Response] = {}
        for record in records:
            key = record.response.key()
            answers[key] = record.response
            net[key] += net_thumbs(record.votes)
            ids_of.setdefault(key, []).append(record.id)
        left_out.undecided += sum(len(ids_of[key]) for key in answers if not net[key])
        encoded: dict[str, Tokens] = {}
        for key in (key for key in answers if net[key]):
            try:
                encoded[key] = encoder.response(
                    ids_of[key][0], records[0].prompt, answers[key], len(prompt_ids)
                )
            except DataError as error:
                refused.add(ids_of[key], error)
        thumbs: dict[tuple[int, ...], set[bool]] = {}
        for key, tokens in encoded.items():
            thumbs.setdefault(tuple(tokens.ids), set()).add(net[key] > 0)
        opposite = {key for key, tokens in encoded.items() if len(thumbs[tuple(tokens.ids)]) > 1}
        left_out.equal += sum(len(ids_of[key]) for key in opposite)
        kept = [key for key in encoded if key not in opposite]
        if not kept:
            return None
        document = document_of(prompt_ids, [encoded[key] for key in kept])
        return _row(document, up=[net[key] > 0 for key in kept])

    what = ("thumb", "response with a decided thumb")
    return _write(file, target, row_of, what, encoder, left_out, refused)


def _write(
    source: _File[R],
    target: Path,
    row_of: Callable[[Sequence[int], list[R]], GroupRow | None],
    what: tuple[str, str],
    encoder: Encoder,
    left_out: LeftOut,
    unusable: Unusable,
) -> Groups:
    """Write the row of every prompt. ``what`` is what a record of the file is called in the log,
    and what at least one of them must be.
    """
    left_out.read = len(source.offsets)
    partial = target.with_suffix(".partial")
    writer = ArrowWriter(path=str(partial), features=_FEATURES, writer_batch_size=200)
    key, prompts = 0, source.numbers_of.values()
    with source.path.open("rb") as file, progress("tokenize", len(prompts), "prompt") as advance:
        for numbers in prompts:
            records = [source.at(file, number) for number in numbers]
            ids = [record.id for record in records]
            try:
                if (row := row_of(numbers, records)) is not None:
                    writer.write({**row, "key": key, "ids": ids})
                    key += len(row["responses_ids"])
            except DataError as error:
                unusable.add(ids, error)
            advance()
    writer.finalize()
    writer.close()
    left_out.unusable = unusable.count
    lines: list[str] = left_out.lines(what[0], encoder.max_length)
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


def _mean_weight(comparisons: Path, weights: Sequence[float]) -> float:
    total = 0.0
    for weight in weights:  # not ``sum``, which rounds otherwise from Python 3.12 on
        total += weight
    if weights and total <= 0:
        raise DataError(
            f"'{comparisons.name}': every pair has weight 0: choose other preference.weights"
        )
    return total / len(weights) if weights else 1.0


def documents(groups: Sequence[PreferenceGroup]) -> Iterator[Document]:
    """The documents of groups, one at a time."""
    return (group.document for group in groups)
