"""What every stage that aligns a policy shares: policy and reference adapters from one SFT
artifact, and the check that they agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from prefloop.artifacts.store import Artifact
from prefloop.data.packing import Document, Pack, on_device, packs
from prefloop.models.backbone import Backbone
from prefloop.models.forward import hidden_N_H, response_logps_R, sum_by_branch_B
from prefloop.runs.work import Work
from prefloop.training.audit import Audit

POLICY, REFERENCE = "policy", "reference"


def start_policy(
    work: Work, sft: Artifact, audit: Audit, documents: Sequence[Document], temperature: float
) -> None:
    """Put policy and frozen reference on the backbone, both copies of the SFT adapter, and audit
    ratio = 1, KL = 0, dropout off.
    """
    backbone = work.runtime.backbone
    backbone.add_role(POLICY, start=sft.path)
    backbone.add_role(REFERENCE, start=sft.path, frozen=True)
    pack = packs(documents, budget=1)[0].to(backbone.device)
    policy_R = logps_R(backbone, pack, POLICY, temperature)
    audit.no_dropout(policy_R, logps_R(backbone, pack, POLICY, temperature))
    reference_R = logps_R(backbone, pack, REFERENCE, temperature)
    audit.equal(
        "ratio policy / reference",
        float((policy_R - reference_R).exp().mean()),
        1.0,
        1e-6,
        "The reference is not where the policy starts.",
    )
    audit.equal(
        "KL policy to reference",
        float((policy_R - reference_R).sum()),
        0.0,
        1e-5,
        "The reference is not where the policy starts.",
    )
    count = backbone.method.count(POLICY)
    audit.check(
        "trainable parameters",
        count > 0,
        f"{count:,} in adapter {POLICY}",
        "The policy has no adapter.",
    )


def save_policy(backbone: Backbone, folder: Path) -> None:
    """Write the trained policy, in the form that its method ends in."""
    backbone.method.finish(POLICY)
    backbone.save_role(POLICY, folder)


def policy_parameters(backbone: Backbone) -> dict[str, nn.Parameter]:
    """The policy adapter's parameters by a stable name."""
    return {f"adapter/{name}": p for name, p in backbone.named_parameters(POLICY).items()}


def logps_R(backbone: Backbone, pack: Pack, role: str | None, temperature: float) -> Tensor:
    """Log-probs of a pack's response tokens under a role, without gradient, [R]."""
    with backbone.role(role):
        return response_logps_R(backbone, hidden_N_H(backbone, pack), pack, temperature)


def reference_B(
    backbone: Backbone, pack: Pack, temperature: float, cached: Tensor | None = None
) -> Tensor:
    """Summed reference log-prob of each response: from the cache (indexed by key), or computed now
    under the reference adapter.
    """
    if cached is not None:
        return on_device(cached[list(pack.keys)], pack.tokens_N.device)
    return sum_by_branch_B(logps_R(backbone, pack, REFERENCE, temperature), pack)


def policy_B(backbone: Backbone, pack: Pack, temperature: float) -> Tensor:
    """Summed policy log-prob of each response, with gradient."""
    with backbone.role(POLICY, train=True):
        return sum_by_branch_B(
            response_logps_R(backbone, hidden_N_H(backbone, pack), pack, temperature), pack
        )
