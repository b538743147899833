"""KTO's packed step: responses with thumbs, and the KL estimate z0 from mismatched prompts and
responses.

Shape letters: B rated responses, R response tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from prefloop.data.encode import ThumbGroup
from prefloop.data.packing import Document, Pack, on_device, packs
from prefloop.errors import DataError
from prefloop.models.backbone import Backbone
from prefloop.models.forward import sum_by_branch_B
from prefloop.objectives.preference import kto
from prefloop.training.policy import POLICY, REFERENCE, logps_R, policy_B


def mismatched(groups: Sequence[ThumbGroup]) -> list[Document]:
    """Every prompt with the responses of the next one (the last with the first's), as many as both
    have, keys counting from 0.

    Ethayarajh et al. 2024, section 3.2: z0 is estimated on unrelated responses. Raises
    ``DataError`` for fewer than two prompts.
    """
    if len(groups) < 2:
        raise DataError(
            "KTO estimates its KL from mismatched prompts and responses: a step needs at least 2"
            " prompts, raise preference.batch_pairs"
        )
    out, key = [], 0
    for group, other in zip(groups, [*groups[1:], groups[0]], strict=True):
        count = min(len(group.up), len(other.up))
        learn = other.document.learn and other.document.learn[:count]
        responses = other.document.responses_ids[:count]
        out.append(Document(group.document.prompt_ids, responses, range(key, key + count), learn))
        key += count
    return out


@dataclasses.dataclass(frozen=True)
class Estimates:
    """What a step knows before its gradient: z0, and the reference's summed log-prob of each rated
    response by key.
    """

    z0: Tensor
    reference: dict[int, Tensor]


@dataclasses.dataclass(frozen=True)
class Reads:
    """Packs of a step that need no gradient; keys count from 0."""

    reference: list[Pack]
    """Every prompt once, with its own and its mismatched responses; the own ones have the first
    keys.
    """
    policy: list[Pack]
    """The mismatched pairs."""
    keys: tuple[int, ...]
    """The caller's keys of the own responses."""


def reads(groups: Sequence[ThumbGroup], budget: int) -> Reads:
    """What ``estimate`` reads for the groups of a step, in packs of ``budget`` tokens."""
    pairs = mismatched(groups)
    keys = [key for group in groups for key in group.document.keys]
    own, both = 0, []
    for group, other in zip(groups, pairs, strict=True):
        responses = [*group.document.responses_ids, *other.responses_ids]
        places = [*range(own, own + len(group.up)), *(len(keys) + key for key in other.keys)]
        both.append(
            Document(group.document.prompt_ids, responses, places, _learn(group.document, other))
        )
        own += len(group.up)
    return Reads(packs(both, budget), packs(pairs, budget), tuple(keys))


def _learn(*documents: Document) -> list[Sequence[bool]] | None:
    """The marks of several documents' responses, one after another."""
    if all(document.learn is None for document in documents):
        return None
    return [m for d in documents for m in d.learn or [[True] * len(ids) for ids in d.responses_ids]]


def estimate(backbone: Backbone, step: Reads, temperature: float) -> Estimates:
    """z0, the mean over mismatched pairs of log π/π_ref of the whole response, at least 0, and the
    reference's log-probs; no gradient.
    """
    reference_M = _sums(backbone, step.reference, REFERENCE, temperature)
    policy_M = _sums(backbone, step.policy, POLICY, temperature)
    count = len(step.keys)
    z0 = (policy_M - reference_M[count:]).mean().clamp_min(0)
    return Estimates(z0, dict(zip(step.keys, reference_M[:count].unbind(), strict=True)))


def _sums(backbone: Backbone, todo: Sequence[Pack], role: str, temperature: float) -> Tensor:
    """Summed log-probs of all responses under a role, in the order of their keys 0, 1, …"""
    found: list[Tensor] = []
    order: list[int] = []
    for pack in todo:
        there = pack.to(backbone.device)
        found.append(sum_by_branch_B(logps_R(backbone, there, role, temperature), there))
        order += pack.keys
    return torch.cat(found).index_select(
        0, on_device(torch.tensor(order).argsort(), backbone.device)
    )


def kto_loss(
    backbone: Backbone,
    pack: Pack,
    up: Mapping[int, bool],
    known: Estimates,
    beta: float,
    weights: tuple[float, float],
    temperature: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss of each response of a pack, its log-ratio (detached) and whether it is desirable, [B]
    each; ``weights`` are (up, down).
    """
    reference_B = torch.stack([known.reference[key] for key in pack.keys])
    ratio_B = policy_B(backbone, pack, temperature) - reference_B
    up_B = on_device(torch.tensor([up[key] for key in pack.keys]), ratio_B.device)
    return kto(ratio_B, up_B, known.z0, beta, *weights), ratio_B.detach(), up_B


def one_sided(ups: int, downs: int) -> str:
    """What it means that all thumbs are of one kind; nothing where there are both.

    The loss stays well defined: λ (1 - σ(±β (log-ratio - z0))) is bounded, its gradient fades as
    the log-ratio leaves z0, and z0 is taken as given. Thumbs up alone raise what they praise
    against the reference. Thumbs down alone say what not to write and leave open what instead.
    """
    if ups and downs:
        return ""
    if ups:
        return (
            f"all {ups} thumbs are up: KTO makes these responses likelier than SFT does, and"
            " nothing tells what is bad"
        )
    return (
        f"all {downs} thumbs are down: KTO makes these responses less likely and nothing tells what"
        " to write instead, so look at KL, lengths and samples, or add responses with a thumb up"
    )


def balanced(ups: int, downs: int) -> tuple[float, float]:
    """Weights (up, down) that give both thumbs the same total, their mean over the data being 1:
    the paper's range [1, 4/3] for n_D λ_D / n_U λ_U starts here.

    With one kind alone there is nothing to balance: 1 each.
    """
    if not ups or not downs:
        return 1.0, 1.0
    total = ups + downs
    return total / (2 * ups), total / (2 * downs)
