"""Packed losses and gradients against TRL's trainers: the same tiny model, adapters and rows,
float32 on the CPU.

TRL pads a row per response and repeats the prompt; we pack responses behind one shared prompt.
Where TRL defines a loss in another way, the test says what differs and brings both to one
definition.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import PeftModel, get_peft_model
from tiny import add_random_role, load, plain, random_documents
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel
from trl import (
    DPOConfig,
    DPOTrainer,
    KTOConfig,
    KTOTrainer,
    RewardConfig,
    RewardTrainer,
    SFTConfig,
    SFTTrainer,
)
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from prefloop.config import OptimConfig, PreferenceConfig
from prefloop.data.encode import PreferenceGroup, ThumbGroup, pair_indices
from prefloop.data.packing import Document, Pack, document_of_sequence, packs
from prefloop.data.tokens import Tokens
from prefloop.models.backbone import Backbone
from prefloop.models.forward import hidden_N_H
from prefloop.models.heads import ScalarHead
from prefloop.objectives.reward import bradley_terry, centering
from prefloop.pipeline.stages.sft import ROLE, AnswerStep
from prefloop.training.adapter_hooks import Learner
from prefloop.training.dpo import PAIR_LOSSES
from prefloop.training.kto import estimate, kto_loss, mismatched, reads
from prefloop.training.loop import Loop
from prefloop.training.pair_batch import pairs_of
from prefloop.training.policy import POLICY, REFERENCE, policy_B, reference_B

Found = tuple[float, dict[str, Tensor]]
"""A loss and the gradient of every trained parameter by its name without the adapter's."""

TOLERANCE = 1e-4
BUDGETS = [40, 512]
CONFIG = PreferenceConfig(
    beta=0.2, simpo_beta=1.7, flipped_share=0.15, margin=0.7, sft_weight=0.3, nll_weight=0.6
)
PAIRS = [[(0, 1, 1.0, 1.0), (2, 1, 0.0, 1.0)], [(0, 1, 0.0, 1.0)], [(0, 1, 1.0, 1.0)]]
"""Four pairs, two of them with a prompt and a response in common; label 0 prefers the second
response.
"""
STEPS, ROWS = 4, 6
"""Of supervised fine-tuning, and the sequences of a step."""
THUMBS = (1.3, 0.8)
"""Weights up and down."""
TEXTS = [
    {"prompt": "What is the capital?", "completion": " The town by the river.", "label": True},
    {"prompt": "Tell me how the weather will be tomorrow.", "completion": " Bad.", "label": False},
    {
        "prompt": "Thank you!",
        "completion": " It is best to try it again and again.",
        "label": False,
    },
    {"prompt": "The quick brown fox", "completion": " jumps over the lazy dog", "label": True},
]


def groups_of(prompt_lengths: Sequence[int]) -> list[PreferenceGroup]:
    shapes = zip(prompt_lengths, [[4, 9, 6], [3, 8], [10, 2]], strict=True)
    return [
        PreferenceGroup(d, pairs)
        for d, pairs in zip(random_documents(list(shapes)), PAIRS, strict=True)
    ]


GROUPS = groups_of([7, 12, 5])


@pytest.fixture(params=BUDGETS)
def backbone(request: pytest.FixtureRequest, tiny_folder: Path) -> Backbone:
    backbone = load(tiny_folder, pack_tokens=request.param)
    add_random_role(backbone, POLICY, seed=2)
    add_random_role(backbone, REFERENCE, seed=4)
    return backbone


def adapter(model: nn.Module, name: str) -> dict[str, nn.Parameter]:
    marker = f".{name}."
    return {
        n.replace(marker, "."): p
        for n, p in model.named_parameters()
        if marker in n and "lora_" in n
    }


def copy_adapter(backbone: Backbone, role: str, model: PeftModel, name: str) -> None:
    ours, theirs = adapter(backbone.model, role), adapter(model, name)
    assert ours.keys() == theirs.keys() and ours
    for key, parameter in theirs.items():
        parameter.data.copy_(ours[key])


def with_policy(backbone: Backbone, model: PreTrainedModel, task: str = "CAUSAL_LM") -> PeftModel:
    """PEFT's own model with our policy as its adapter 'default'."""
    config = copy.deepcopy(backbone.model.peft_config[POLICY])
    config.task_type = task
    wrapped = get_peft_model(model, config)
    copy_adapter(backbone, POLICY, wrapped, "default")
    return wrapped


def trainer_of(
    kind: type,
    config: type,
    backbone: Backbone,
    tmp_path: Path,
    *,
    model: PeftModel | None = None,
    texts: Sequence[dict[str, Any]] = ({"prompt": "a", "chosen": "b", "rejected": "c"},),
    **settings: Any,
) -> Any:
    """A TRL trainer on our policy, and on our reference where it has one; its constructor wants
    ``texts``.
    """
    args = config(
        output_dir=str(tmp_path),
        use_cpu=True,
        bf16=False,
        report_to="none",
        gradient_checkpointing=False,
        **settings,
    )
    trainer = kind(
        model=model or with_policy(backbone, plain(backbone.folder)),
        args=args,
        train_dataset=Dataset.from_list(list(texts)),
        processing_class=AutoTokenizer.from_pretrained(backbone.folder),
    )
    if "ref" in trainer.model.peft_config:
        copy_adapter(backbone, REFERENCE, trainer.model, "ref")
    return trainer


def backward(losses: Iterable[Tensor]) -> float:
    """Sum of the losses; gradients add up, over calls too."""
    total = 0.0
    for loss in losses:
        loss.backward()
        total += loss.item()
    return total


def of_trl(trainer: Any, batches: Sequence[list[Any]]) -> Found:
    """Mean over batches, as TRL's gradient accumulation takes it."""
    trainer.model.train()
    losses = (
        trainer.compute_loss(trainer.model, trainer.data_collator(rows)) / len(batches)
        for rows in batches
    )
    return backward(losses), {n: p.grad for n, p in adapter(trainer.model, "default").items()}


def of_packs(
    backbone: Backbone, documents: Sequence[Document], loss_of: Callable[[Pack], Tensor], items: int
) -> Found:
    """Mean over items, packed within the backbone's budget."""
    made = packs(documents, backbone.config.pack_tokens)
    assert (len(made) == 1) == (backbone.config.pack_tokens == max(BUDGETS))
    loss = backward(loss_of(pack) / items for pack in made)
    return loss, {n: p.grad for n, p in adapter(backbone.model, POLICY).items()}


def assert_same(found: Found, expected: Found) -> None:
    """Each gradient is held to its own largest element."""
    assert found[0] == pytest.approx(expected[0], rel=TOLERANCE)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        largest = float(gradient.abs().max())
        assert largest > 0, name
        assert float((found[1][name] - gradient).abs().max()) < TOLERANCE * largest, name


def of_pairs(backbone: Backbone, groups: Sequence[PreferenceGroup], name: str) -> Found:
    """Our loss ``name`` on every pair, computed as the stage does."""
    by_key = {key: g for g in groups for key in g.document.keys}
    loss = PAIR_LOSSES[name]

    def loss_of(pack: Pack) -> Tensor:
        reference = reference_B(backbone, pack, 1.0) if loss.needs_reference else 0.0
        pairs = pairs_of(pack, by_key, policy_B(backbone, pack, 1.0), reference)
        return (pairs.weight * loss.loss(pairs, CONFIG)).sum()

    return of_packs(
        backbone, [g.document for g in groups], loss_of, sum(len(g.pairs) for g in groups)
    )


def triples(groups: Sequence[PreferenceGroup]) -> list[tuple[list[int], list[int], list[int]]]:
    """(prompt, chosen, rejected) of every pair."""
    out = []
    for d, (first, second, label, _) in ((g.document, pair) for g in groups for pair in g.pairs):
        ends = (first, second) if label == 1 else (second, first)
        out.append((d.prompt_ids, *(d.responses_ids[i] for i in ends)))
    return out


def labeled_rows(groups: Sequence[PreferenceGroup]) -> list[dict[str, list[int]]]:
    """Rows as the collator of TRL's ORPO and CPO takes them."""
    rows = []
    for prompt, chosen, rejected in triples(groups):
        row = {}
        for side, response in (("chosen", chosen), ("rejected", rejected)):
            row[f"{side}_input_ids"] = prompt + response
            row[f"{side}_attention_mask"] = [1] * len(prompt + response)
            row[f"{side}_labels"] = [-100] * len(prompt) + response
        rows.append(row)
    return rows


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dpo", "ipo", "hinge", "robust", "apo_zero", "apo_down"])
def test_losses_with_a_reference(name: str, backbone: Backbone, tmp_path: Path) -> None:
    # IPO: both take per-token means of the log-ratios; our ipo_reduction = "sum" is the paper's
    # code. Only 'robust' reads TRL's label_smoothing: its 'sigmoid' has none any more, so that our
    # 'cdpo' has no counterpart.
    settings = {
        "loss_type": [{"dpo": "sigmoid"}.get(name, name)],
        "label_smoothing": CONFIG.flipped_share,
    }
    trainer = trainer_of(DPOTrainer, DPOConfig, backbone, tmp_path, beta=CONFIG.beta, **settings)
    rows = [{"prompt_ids": p, "chosen_ids": c, "rejected_ids": r} for p, c, r in triples(GROUPS)]
    assert_same(of_pairs(backbone, GROUPS, name), of_trl(trainer, [rows]))


def test_simpo(backbone: Backbone, tmp_path: Path) -> None:
    # cpo_alpha 0: TRL's default of 1 adds CPO's likelihood term, which SimPO has not.
    settings = {
        "loss_type": "simpo",
        "beta": CONFIG.simpo_beta,
        "simpo_gamma": CONFIG.margin,
        "cpo_alpha": 0.0,
    }
    trainer = trainer_of(CPOTrainer, CPOConfig, backbone, tmp_path, **settings)
    assert_same(of_pairs(backbone, GROUPS, "simpo"), of_trl(trainer, [labeled_rows(GROUPS)]))


def test_cpo(backbone: Backbone, tmp_path: Path) -> None:
    # TRL's likelihood term is a mean over all chosen tokens of a batch; ours is each pair's own, so
    # that no pair counts more for its length or its neighbors. Batches of one pair are both.
    settings = {"loss_type": "sigmoid", "beta": CONFIG.beta, "cpo_alpha": CONFIG.nll_weight}
    trainer = trainer_of(CPOTrainer, CPOConfig, backbone, tmp_path, **settings)
    assert_same(
        of_pairs(backbone, GROUPS, "cpo"), of_trl(trainer, [[row] for row in labeled_rows(GROUPS)])
    )


def test_orpo(backbone: Backbone, tmp_path: Path) -> None:
    # TRL's likelihood term is a mean over all tokens of a batch, those of the prompts too; ours is
    # each chosen response's own, since the policy does not write prompts. Batches of one pair with
    # a prompt of one token (which nothing predicts) are both.
    groups = groups_of([1, 1, 1])
    trainer = trainer_of(ORPOTrainer, ORPOConfig, backbone, tmp_path, beta=CONFIG.sft_weight)
    assert_same(
        of_pairs(backbone, groups, "orpo"),
        of_trl(trainer, [[row] for row in labeled_rows(groups)]),
    )


def test_orpo_with_prompts(backbone: Backbone, tmp_path: Path) -> None:
    """Ours with the chosen response's mean log-prob exchanged for that of prompt and response, the
    definition of TRL.
    """

    def mean_logp(documents: list[Document], sign: int) -> float:
        def loss_of(pack: Pack) -> Tensor:
            return sign * (policy_B(backbone, pack, 1.0) / pack.length_B).sum()

        return of_packs(backbone, documents, loss_of, len(documents))[0]

    trainer = trainer_of(ORPOTrainer, ORPOConfig, backbone, tmp_path, beta=CONFIG.sft_weight)
    chosen = [Document(p, [c], [i]) for i, (p, c, _) in enumerate(triples(GROUPS))]
    whole = [Document(p[:1], [p[1:] + c], [i]) for i, (p, c, _) in enumerate(triples(GROUPS))]
    loss = mean_logp(chosen, 1) + mean_logp(whole, -1)
    ours, gradients = of_pairs(backbone, GROUPS, "orpo")
    assert_same((ours + loss, gradients), of_trl(trainer, [[row] for row in labeled_rows(GROUPS)]))


@pytest.fixture
def kto(backbone: Backbone, tmp_path: Path) -> Any:
    settings = {"beta": CONFIG.beta, "desirable_weight": THUMBS[0], "undesirable_weight": THUMBS[1]}
    return trainer_of(KTOTrainer, KTOConfig, backbone, tmp_path, texts=TEXTS, **settings)


def of_thumbs(backbone: Backbone, groups: Sequence[ThumbGroup]) -> Found:
    up = {key: good for g in groups for key, good in zip(g.document.keys, g.up, strict=True)}
    known = estimate(backbone, reads(groups, backbone.scoring_tokens), 1.0)
    assert known.z0 > 0, "clamped: the estimate would not be compared"

    def loss_of(pack: Pack) -> Tensor:
        return kto_loss(backbone, pack, up, known, CONFIG.beta, THUMBS, 1.0)[0].sum()

    return of_packs(backbone, [g.document for g in groups], loss_of, len(up))


def test_kto(backbone: Backbone, kto: Any) -> None:
    # TRL's z0 pairs row i with the completion of row i - 1, even when both rows have one prompt and
    # the completion is no stranger to it; ours takes the next prompt's responses. One response a
    # prompt, in reverse order, is both.
    rows = list(kto.train_dataset)
    groups = [
        ThumbGroup(Document(row["prompt_ids"], [row["completion_ids"]], [key]), [row["label"]])
        for key, row in enumerate(reversed(rows))
    ]
    assert_same(of_thumbs(backbone, groups), of_trl(kto, [rows]))


def test_kto_with_shared_prompts(backbone: Backbone, kto: Any) -> None:
    """TRL is handed our strangers, as many as there are rows."""
    documents = random_documents([(7, [4, 9]), (12, [3, 8]), (5, [10, 2])])
    groups = [
        ThumbGroup(d, up)
        for d, up in zip(documents, [[True, False], [True, True], [False, True]], strict=True)
    ]
    strangers = iter([ids for d in mismatched(groups) for ids in d.responses_ids])
    rows = [
        {
            "prompt_ids": g.document.prompt_ids,
            "completion_ids": ids,
            "label": up,
            "KL_completion_ids": next(strangers),
        }
        for g in groups
        for ids, up in zip(g.document.responses_ids, g.up, strict=True)
    ]
    assert_same(of_thumbs(backbone, groups), of_trl(kto, [rows]))


@pytest.mark.parametrize(("target", "center"), [(0.0, None), (0.4, 0.3)])
def test_reward_model(
    target: float, center: float | None, backbone: Backbone, tmp_path: Path
) -> None:
    # TRL's head reads hidden states as they are; ours divides them by their root mean square first,
    # so that one learning rate fits every model. TRL's head gets the same division put before it.
    head = ScalarHead(backbone.hidden_size, init="normal")
    classifier = AutoModelForSequenceClassification.from_pretrained(
        backbone.folder, num_labels=1, dtype=torch.float32
    )
    model = with_policy(backbone, classifier, "SEQ_CLS")
    score = model.base_model.model.score.modules_to_save["default"]
    score.register_forward_pre_hook(
        lambda _, args: args[0] / args[0].square().mean(-1, keepdim=True).sqrt()
    )
    score.weight.data.copy_(head.linear.weight)
    trl = trainer_of(
        RewardTrainer,
        RewardConfig,
        backbone,
        tmp_path,
        model=model,
        center_rewards_coefficient=center,
    )
    rows = [
        {"chosen_ids": p + c, "rejected_ids": p + r, "margin": target}
        for p, c, r in triples(GROUPS)
    ]
    by_key = {key: g for g in GROUPS for key in g.document.keys}

    def loss_of(pack: Pack) -> Tensor:
        with backbone.role(POLICY, train=True):
            score_B = head(hidden_N_H(backbone, pack)[pack.last_B])
        first, second, labels, _ = map(list, zip(*pair_indices(pack, by_key), strict=True))
        losses_P = bradley_terry(score_B[first] - score_B[second], torch.tensor(labels), target)
        return (losses_P + (center or 0.0) * centering(score_B[first], score_B[second])).sum()

    ours, gradients = of_packs(backbone, [g.document for g in GROUPS], loss_of, len(rows))
    theirs, expected = of_trl(trl, [rows])
    assert_same(
        (ours, gradients | {"head": head.linear.weight.grad}),
        (theirs, expected | {"head": score.weight.grad}),
    )


def test_sft(backbone: Backbone, tmp_path: Path) -> None:
    """Four steps of AdamW with decay, clipping and a falling rate; TRL takes the rows of a step in
    two padded batches.
    """
    add_random_role(backbone, ROLE, seed=2)
    draw = random.Random(0)
    rows = [
        [draw.randrange(7, 400) for _ in range(draw.randrange(6, 30))] for _ in range(STEPS * ROWS)
    ]
    # A turn in the middle of a row is context, so that marks of both kinds follow each other.
    marks = [[4 <= i != len(row) // 2 for i in range(len(row))] for row in rows]
    optim = OptimConfig(
        learning_rate=1e-2, warmup_steps=0, schedule="linear", weight_decay=0.1, max_grad_norm=0.5
    )
    trainer = trainer_of(
        SFTTrainer,
        SFTConfig,
        backbone,
        tmp_path,
        texts=[
            {"input_ids": row, "completion_mask": list(map(int, mark))}
            for row, mark in zip(rows, marks, strict=True)
        ],
        completion_only_loss=True,
        per_device_train_batch_size=ROWS // 2,
        gradient_accumulation_steps=2,
        num_train_epochs=1,
        train_sampling_strategy="sequential",
        learning_rate=optim.learning_rate,
        lr_scheduler_type="linear",
        weight_decay=optim.weight_decay,
        max_grad_norm=optim.max_grad_norm,
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
    )
    start = {n: p.detach().clone() for n, p in adapter(trainer.model, "default").items()}
    trainer.train()
    loop = Loop(
        {f"adapter/{n}": p for n, p in backbone.named_parameters(ROLE).items()},
        optim,
        STEPS,
        tmp_path / "ours",
        learners=[Learner(backbone, ROLE)],
    )
    documents = [
        document_of_sequence(Tokens(row, mark), key)
        for key, (row, mark) in enumerate(zip(rows, marks, strict=True))
    ]
    found = []
    for first in range(0, len(rows), ROWS):
        step = AnswerStep(backbone, documents[first : first + ROWS])
        assert (len(step.packs) == 1) == (backbone.config.pack_tokens == max(BUDGETS))
        found.append(loop.update(step.packs, step.loss, step.items))
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    for name in ("loss", "grad_norm"):
        assert [f[name] for f in found] == pytest.approx([e[name] for e in logged], rel=1e-3), name
    assert [f["lr"] for f in found] == pytest.approx([e["learning_rate"] for e in logged])
    for name, parameter in adapter(backbone.model, ROLE).items():
        ours, theirs = parameter.detach(), adapter(trainer.model, "default")[name].detach()
        moved = float((theirs - start[name]).abs().max())
        assert moved > 5e-3, name
        assert float((ours - theirs).abs().max()) < 1e-2 * moved, name
