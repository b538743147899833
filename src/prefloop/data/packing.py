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
    """A prompt and the responses that branch off it. ``keys`` name the responses for the caller."""

    prompt_ids: Sequence[int]
    responses_ids: Sequence[Sequence[int]]
    keys: Sequence[int]
    learn: Sequence[Sequence[bool]] | None = None
    """For every response which of its tokens count in its log-prob; all of them where absent."""

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
        """The prompt and one of its responses as a sequence."""
        ids = self.responses_ids[place]
        marks = self.learn[place] if self.learn else [True] * len(ids)
        return Tokens([*self.prompt_ids, *ids], [*[False] * len(self.prompt_ids), *marks])

    def __len__(self) -> int:
        return len(self.prompt_ids) + sum(len(ids) for ids in self.responses_ids)


def document_of(
    prompt_ids: Sequence[int], answers: Sequence[Tokens], first_key: int = 0
) -> Document:
    """The document of a prompt and its tokenized answers, which get the keys from ``first_key``
    on.
    """
    keys = range(first_key, first_key + len(answers))
    learn = (
        None
        if all(all(answer.learn) for answer in answers)
        else [answer.learn for answer in answers]
    )
    return Document(prompt_ids, [answer.ids for answer in answers], list(keys), learn)


def document_of_sequence(tokens: Tokens, key: int = 0) -> Document:
    """A sequence as a document: up to its first learnt token the prompt, then the answer with its
    marks.
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
    """Token ids of the responses, branch after branch; of those that are learnt."""
    segment_R: Tensor
    """Branch (0..B-1) of response token r."""
    last_B: Tensor
    """Index into N of each branch's last token."""
    length_B: Tensor
    """Response length in learnt tokens."""
    keys: tuple[int, ...]
    """The caller's names of the branches, B long."""
    starts_q: Tensor
    """First token of each prompt and each branch, then N; int32 [S + 1]."""
    starts_k: Tensor
    """Where the keys of those S segments start in ``keys_M``, then M; int32 [S + 1]."""
    keys_M: Tensor
    """Indices into N: for a prompt its own tokens, for a branch its prompt's and its own."""
    longest_q: int
    longest_k: int

    def mask_NN(self) -> Tensor:
        """True where query row may see key column: same document, not later, own branch or the
        shared prompt.
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
    """``tensor`` on ``device``; on a GPU from pinned memory, so that the host does not wait for
    what the device still has to do.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def pack(documents: Sequence[Document]) -> Pack:
    """Lay documents one after another in a row."""
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
    """Fill packs of at most ``budget`` tokens, first fit by falling length; a longer document gets
    a pack of its own.

    Deterministic: equal lengths keep their order. The loss of an optimizer step is a sum over
    branches or pairs, so it does not depend on how they were packed.
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
