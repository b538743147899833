"""Token-budget packs in which any number of responses branch off one shared prompt.

Shape letters: N packed tokens, R response tokens, B branches (responses) of a pack, S prompts and
branches, M keys with prompts repeated. A pack is one row: documents one after another, each its
prompt followed by its branches. Positions restart at the branch, so a response sits where it would
sit alone.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from prefloop.data.tokens import Tokens


@dataclasses.dataclass(frozen=True)
class Document:
    """A prompt and its responses. ``keys`` are the caller's names of the responses."""

    prompt_ids: Sequence[int]
    responses_ids: Sequence[Sequence[int]]
    keys: Sequence[int]
    learn: Sequence[Sequence[bool]] | None = None
    """Which tokens of each response count in its log-prob; ``None`` where all do."""

    def __post_init__(self) -> None:
        if not self.prompt_ids:
            raise ValueError(
                "a document needs at least one prompt token: the first response token is predicted"
                " from it"
            )
        if len(self.responses_ids) != len(self.keys) or not self.keys:
            raise ValueError(f"{len(self.responses_ids)} responses but {len(self.keys)} keys")
        if any(not ids for ids in self.responses_ids):
            raise ValueError("a document holds an empty response")
        if self.learn is not None:
            if [len(marks) for marks in self.learn] != [len(ids) for ids in self.responses_ids]:
                raise ValueError("a document's marks do not fit its responses")
            if not all(any(marks) for marks in self.learn):
                raise ValueError("a document holds a response of which nothing is learnt")

    def tokens(self, place: int) -> Tokens:
        """The prompt and one of its responses as one sequence."""
        ids = self.responses_ids[place]
        marks = self.learn[place] if self.learn else [True] * len(ids)
        return Tokens([*self.prompt_ids, *ids], [*[False] * len(self.prompt_ids), *marks])

    def __len__(self) -> int:
        return len(self.prompt_ids) + sum(len(ids) for ids in self.responses_ids)


def document_of(
    prompt_ids: Sequence[int], answers: Sequence[Tokens], first_key: int = 0
) -> Document:
    """The document of a prompt and its tokenized answers, with keys from ``first_key`` on."""
    keys = range(first_key, first_key + len(answers))
    whole = all(all(answer.learn) for answer in answers)
    learn = None if whole else [answer.learn for answer in answers]
    return Document(prompt_ids, [answer.ids for answer in answers], list(keys), learn)


def document_of_sequence(tokens: Tokens, key: int = 0) -> Document:
    """A sequence as a document: the prompt is everything before the first learnt token, and the
    answer the rest, with its marks.
    """
    start = tokens.learn.index(True)
    marks = tokens.learn[start:]
    return Document(
        tokens.ids[:start], [tokens.ids[start:]], [key], None if all(marks) else [marks]
    )


@dataclasses.dataclass(frozen=True)
class Pack:
    """Tensors of one forward pass."""

    tokens_N: Tensor
    positions_N: Tensor
    document_N: Tensor
    branch_N: Tensor
    """0 in a prompt, k >= 1 in the pack's k-th response."""
    source_R: Tensor
    """Index into N of the token whose hidden state predicts response token r."""
    target_R: Tensor
    """Token ids of the responses, branch after branch, of the learnt tokens only."""
    segment_R: Tensor
    """Branch (0..B-1) of response token r."""
    last_B: Tensor
    """Index into N of each branch's last token."""
    length_B: Tensor
    """Response length in learnt tokens."""
    keys: tuple[int, ...]
    """The caller's names of the B branches."""
    starts_q: Tensor
    """First token of each prompt and each branch, then N; int32 [S + 1]."""
    starts_k: Tensor
    """Where the keys of those S segments start in ``keys_M``, then M; int32 [S + 1]."""
    keys_M: Tensor
    """Indices into N: for a prompt its own tokens, for a branch its prompt's and its own."""
    longest_q: int
    longest_k: int

    def mask_NN(self) -> Tensor:
        """True where the query (row) may see the key (column): in the same document, not later, and
        in its own branch or in the prompt.
        """
        same = self.document_N[:, None] == self.document_N[None, :]
        seen = (self.branch_N[None, :] == 0) | (self.branch_N[:, None] == self.branch_N[None, :])
        causal = torch.ones(
            len(self.tokens_N), len(self.tokens_N), dtype=torch.bool, device=self.tokens_N.device
        ).tril()
        return same & seen & causal

    def to(self, device: torch.device) -> Pack:
        """The same pack with its tensors on ``device``."""
        tensors: dict[str, Any] = {
            name: on_device(value, device)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return dataclasses.replace(self, **tensors)


def on_device(tensor: Tensor, device: torch.device) -> Tensor:
    """``tensor`` on ``device``. For a GPU it is copied from pinned memory, so that the host does
    not wait for earlier work of the device.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def pack(documents: Sequence[Document]) -> Pack:
    """Lay documents one after another in one pack."""
    tokens: list[int] = []
    positions: list[int] = []
    document: list[int] = []
    branch: list[int] = []
    source: list[int] = []
    target: list[int] = []
    segment: list[int] = []
    last: list[int] = []
    keys: list[int] = []
    starts_q, starts_k = [0], [0]
    seen: list[int] = []
    for d, doc in enumerate(documents):
        prompt = len(doc.prompt_ids)
        shared = range(len(tokens), len(tokens) + prompt)
        seen += shared
        starts_q.append(shared.stop)
        starts_k.append(len(seen))
        tokens += doc.prompt_ids
        positions += range(prompt)
        document += [d] * len(doc)
        branch += [0] * prompt
        for place, (ids, key) in enumerate(zip(doc.responses_ids, doc.keys, strict=True)):
            start = len(tokens)
            before = [shared[-1], *range(start, start + len(ids) - 1)]
            marks = doc.learn[place] if doc.learn else None
            source += itertools.compress(before, marks) if marks else before
            target += itertools.compress(ids, marks) if marks else ids
            segment += [len(keys)] * (sum(marks) if marks else len(ids))
            tokens += ids
            positions += range(prompt, prompt + len(ids))
            keys.append(key)
            branch += [len(keys)] * len(ids)
            last.append(len(tokens) - 1)
            seen += [*shared, *range(start, len(tokens))]
            starts_q.append(len(tokens))
            starts_k.append(len(seen))
    return Pack(
        tokens_N=torch.tensor(tokens),
        positions_N=torch.tensor(positions),
        document_N=torch.tensor(document),
        branch_N=torch.tensor(branch),
        source_R=torch.tensor(source),
        target_R=torch.tensor(target),
        segment_R=torch.tensor(segment),
        last_B=torch.tensor(last),
        length_B=torch.bincount(torch.tensor(segment), minlength=len(keys)),
        keys=tuple(keys),
        starts_q=torch.tensor(starts_q, dtype=torch.int32),
        starts_k=torch.tensor(starts_k, dtype=torch.int32),
        keys_M=torch.tensor(seen),
        longest_q=max(b - a for a, b in itertools.pairwise(starts_q)),
        longest_k=max(b - a for a, b in itertools.pairwise(starts_k)),
    )


def packs(documents: Iterable[Document], budget: int) -> list[Pack]:
    """Fill packs of at most ``budget`` tokens, first fit by falling length. A longer document gets
    a pack of its own.

    Deterministic: documents of equal length keep their order. The loss of an optimizer step is a
    sum over branches or pairs, so it does not depend on the packing.
    """
    bins: list[tuple[int, list[Document]]] = []
    for doc in sorted(documents, key=len, reverse=True):
        for k, (used, content) in enumerate(bins):
            if used + len(doc) <= budget:
                bins[k] = (used + len(doc), [*content, doc])
                break
        else:
            bins.append((len(doc), [doc]))
    return [pack(content) for _, content in bins]
