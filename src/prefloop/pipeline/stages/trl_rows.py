"""What a trainer of TRL learns from, as rows of token ids."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from prefloop.artifacts.store import Artifact
from prefloop.base.console import counted, say
from prefloop.config import DataConfig
from prefloop.config.trl import TrlConfig
from prefloop.data.encode import Encoder
from prefloop.data.groups import Groups, documents, write_groups, write_thumbs
from prefloop.data.packing import Document, document_of_sequence
from prefloop.data.quarantine import TOO_LONG, Unusable, encoded
from prefloop.data.sources import load_demonstrations
from prefloop.errors import DataError
from prefloop.labeling.aggregation import aggregation, hardened
from prefloop.pipeline.stages.comparisons import require_pairs, unusable_of
from prefloop.pipeline.stages.ratings import ratings_of
from prefloop.pipeline.stages.sampling import read_prompts
from prefloop.records import Prompt, Response
from prefloop.runs.work import Work
from prefloop.training.audit import Audit

Row = dict[str, Any]
_TAKEN = frozenset(
    [
        "prompt",
        "id",
        "completion",
        "completions",
        "completion_ids",
        "trainer_state",
        "image",
        "images",
    ]
)
"""Names that a column from a prompt's ``meta`` cannot have: TRL gives them its
own meaning.
"""


@dataclasses.dataclass(frozen=True)
class TrlRows:
    """The rows, and what else the stage asks about them."""

    rows: list[Row]
    probe: Document
    """One of them, to compare policy and reference on."""
    metrics: dict[str, Any]
    prompts: Mapping[str, Prompt] = dataclasses.field(default_factory=dict)
    """By the id in their rows, where answers to them are sampled."""
    ids: Mapping[str, list[int]] = dataclasses.field(default_factory=dict)
    """Their token ids, by the same."""
    by_turns: Mapping[str, list[int]] = dataclasses.field(default_factory=dict)
    """Their token ids, by ``key_of``."""

    def ids_of(self, turns: Sequence[Mapping[str, Any]]) -> list[int]:
        """The token ids of a prompt that TRL hands back."""
        return self.by_turns[key_of(turns)]


def key_of(turns: Sequence[Mapping[str, Any]]) -> str:
    """A conversation as a key."""
    return json.dumps(turns, sort_keys=True)


@dataclasses.dataclass(frozen=True)
class RowSource:
    """Where the rows of a stage come from."""

    stage: str
    config: TrlConfig
    data: DataConfig
    inputs: Mapping[str, Artifact]

    def unusable(self, work: Work) -> Unusable:
        """What is done with demonstrations that cannot be used."""
        aside = self.data.bad_rows == "quarantine"
        return Unusable(work.folder / f"{TOO_LONG}.quarantine.jsonl" if aside else None)


def pairs(source: RowSource, work: Work, audit: Audit) -> TrlRows:
    """A row for every pair of which one response has more votes."""
    comparisons = source.inputs["comparisons"]
    require_pairs(comparisons, source.stage)
    by_votes = source.config.aggregation
    encoder = _encoder(work)
    groups = write_groups(
        comparisons / "comparisons.jsonl",
        work.scratch / "groups.arrow",
        encoder,
        hardened(aggregation(by_votes)),
        None,
        unusable_of(comparisons, work.folder),
    )
    _look_at(work, audit, groups, encoder)
    rows: list[Row] = []
    ties = masked = 0
    for group in groups:
        document = group.document
        for first, second, label, _ in group.pairs:
            better, worse = (first, second) if label > 0.5 else (second, first)
            if label == 0.5:
                ties += 1
            elif _masked(document, better) or _masked(document, worse):
                masked += 1
            else:
                rows.append(
                    {
                        "prompt_ids": list(document.prompt_ids),
                        "chosen_ids": list(document.responses_ids[better]),
                        "rejected_ids": list(document.responses_ids[worse]),
                    }
                )
    _say_left_out("pair", len(rows), {"ties": ties, _MASKED: masked})
    audit.note(
        f"TRL takes no soft labels: in each of {counted(len(rows), 'pair')} the better response is"
        f" the one that the votes are for ({by_votes})"
    )
    metrics = {"pairs": len(rows), "ties": ties, "truncated": encoder.cut}
    return TrlRows(rows, groups[0].document, metrics | groups.left_out.metrics())


def thumbs(source: RowSource, work: Work, audit: Audit) -> TrlRows:
    """A row for every response with a decided thumb."""
    comparisons, encoder = source.inputs["comparisons"], _encoder(work)
    groups = write_thumbs(
        ratings_of(comparisons, work),
        work.scratch / "thumbs.arrow",
        encoder,
        unusable_of(comparisons, work.folder),
    )
    _look_at(work, audit, groups, encoder)
    of_prompt: list[list[Row]] = []
    masked = 0
    for group in map(groups.thumbs, range(len(groups))):
        document = group.document
        kept = [place for place in range(len(group.up)) if not _masked(document, place)]
        masked += len(group.up) - len(kept)
        of_prompt.append(
            [
                {
                    "prompt_ids": list(document.prompt_ids),
                    "completion_ids": list(document.responses_ids[place]),
                    "label": group.up[place],
                }
                for place in kept
            ]
        )
    rows = dealt(of_prompt, work.runtime.seed)
    _say_left_out("thumb", len(rows), {_MASKED: masked})
    ups = sum(row["label"] for row in rows)
    audit.note(
        f"{ups} up, {len(rows) - ups} down; TRL weighs them with desirable_weight and"
        " undesirable_weight (trl.args)"
    )
    metrics = {"up": ups, "down": len(rows) - ups, "truncated": encoder.cut}
    return TrlRows(rows, groups[0].document, metrics | groups.left_out.metrics())


def dealt(of_prompt: Sequence[list[Row]], seed: int) -> list[Row]:
    """Rows in a drawn order in which neighbors are of different prompts as far as can be: TRL
    keeps the order, and takes a row's neighbor for a response to another prompt.
    """
    order = [list(rows) for rows in of_prompt]
    random.Random(seed).shuffle(order)
    out: list[Row] = []
    while order := [rows for rows in order if rows]:
        out += [rows.pop() for rows in order]
    return out


def prompts(source: RowSource, work: Work, audit: Audit) -> TrlRows:
    """A row for every prompt; what its ``meta`` holds of all prompts becomes a column for TRL's
    reward functions.
    """
    chat, encoder = work.runtime.backbone.chat, _encoder(work)
    records = read_prompts(work, source.data)
    room = work.runtime.generation.max_new_tokens
    ids = {p.id: encoder.prompt(p.id, p.prompt, room) for p in records}
    audit.prompts(chat, list(ids.values()))
    columns = {
        name
        for name, value in records[0].meta.items()
        if name not in _TAKEN and all(type(p.meta.get(name)) is type(value) for p in records)
    }
    rows = [
        {
            "prompt": [{"role": turn.role, "content": turn.content} for turn in p.prompt],
            "id": p.id,
            **{name: p.meta[name] for name in sorted(columns)},
        }
        for p in records
    ]
    by_turns: dict[str, list[int]] = {}
    for row in rows:
        if by_turns.setdefault(key_of(row["prompt"]), ids[row["id"]]) != ids[row["id"]]:
            raise DataError(
                f"prompt '{row['id']}' differs from another one in tools or tool calls alone, which"
                " TRL's conversations do not hold: leave one of them out"
            )
    answer = chat.answer(records[0].prompt, Response("A short probe.", meta={"finished": True}))
    probe = Document(ids[records[0].id], [answer.ids], [0])
    by_id = {p.id: p for p in records}
    return TrlRows(rows, probe, {"prompts": len(rows)}, by_id, ids, by_turns)


def demonstrations(source: RowSource, work: Work, audit: Audit) -> TrlRows:
    """A row for every conversation, of which the assistant's turns are learned."""
    data = source.data
    assert data.demonstrations is not None  # seen to before the stage runs
    loaded = load_demonstrations(
        data.demonstrations,
        layout=data.layout,
        bad_rows=data.bad_rows,
        quarantine_dir=work.folder,
        limit=data.limit,
    )
    say(f"  {loaded.describe()}")
    encoder, chat = _encoder(work), work.runtime.backbone.chat
    kept = encoded(loaded.records, encoder.conversation, source.unusable(work))
    sequences = [tokens for _, of_record in kept for tokens in of_record]
    audit.tokens(chat, map(document_of_sequence, sequences), encoder.cut)
    audit.texts(chat, encoder, sequences[0])
    rows = [
        {"input_ids": tokens.ids, "completion_mask": list(map(int, tokens.learn))}
        for tokens in sequences
    ]
    metrics = {"rows": len(rows), "truncated": encoder.cut}
    return TrlRows(rows, document_of_sequence(sequences[0]), metrics)


ROWS: Mapping[str, Callable[[RowSource, Work, Audit], TrlRows]] = {
    "pairs": pairs,
    "thumbs": thumbs,
    "prompts": prompts,
    "demonstrations": demonstrations,
}
"""By what a trainer learns from (``TrlTrainer.learns_from``)."""


def _encoder(work: Work) -> Encoder:
    backbone = work.runtime.backbone
    return Encoder(backbone.chat, backbone.config.max_length)


def _look_at(work: Work, audit: Audit, groups: Groups, encoder: Encoder) -> None:
    chat = work.runtime.backbone.chat
    audit.tokens(chat, documents(groups), encoder.cut + encoder.unfinished)
    audit.texts(chat, encoder, groups[0].document.tokens(0))


_MASKED = "with results of tools, which TRL would learn too"


def _masked(document: Document, place: int) -> bool:
    """Whether a response holds tokens that are not to be learned."""
    return document.learn is not None and not all(document.learn[place])


def _say_left_out(what: str, kept: int, counts: Mapping[str, int]) -> None:
    """Name what is left out. Raises ``DataError`` where nothing is left."""
    left_out = ", ".join(f"{count:,} {why}" for why, count in counts.items() if count)
    if left_out:
        say(f"  left out: {left_out}", "yellow")
    if not kept:
        raise DataError(f"no {what} is left for TRL's trainer: {left_out}")
