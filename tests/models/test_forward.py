"""Packed log-probs and gradients against the plain model fed one row per response."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import VOCABULARY, add_random_role, load, plain, random_documents
from torch import Tensor
from torch.testing import assert_close

from prefloop.data.packing import Document, pack, packs
from prefloop.models import forward
from prefloop.models.backbone import Backbone
from prefloop.models.forward import entropy_R, hidden_N_H, response_logps_R, sum_by_branch_B

FAMILIES = ["llama", "qwen2", "gemma2", "mistral", "granite"]
SHAPES = [(12, [9, 3, 17]), (1, [5]), (20, [1, 8]), (7, [30])]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def backbone(family: str, tiny_folders: Callable[[str], Path]) -> Backbone:
    backbone = load(tiny_folders(family), family)
    add_random_role(backbone, "policy")
    return backbone


@pytest.fixture(scope="module")
def llama(tiny_folder: Path) -> Backbone:
    backbone = load(tiny_folder)
    add_random_role(backbone, "policy")
    return backbone


def rows(documents: list[Document]) -> Iterator[tuple[int, list[int], list[int]]]:
    for document in documents:
        for key, ids in zip(document.keys, document.responses_ids, strict=True):
            yield key, list(document.prompt_ids), list(ids)


def plain_logps(
    model: torch.nn.Module, documents: list[Document], temperature: float = 1.0
) -> dict[int, Tensor]:
    """Log-probs of each response from transformers' own forward pass, a row at a time."""
    out = {}
    for key, prompt, response in rows(documents):
        logits = model(input_ids=torch.tensor([prompt + response]), use_cache=False).logits[
            0, len(prompt) - 1 : -1
        ]
        out[key] = (
            (logits.float() / temperature)
            .log_softmax(-1)
            .gather(-1, torch.tensor(response)[:, None])[:, 0]
        )
    return out


def packed_logps(
    backbone: Backbone, documents: list[Document], budget: int = 10_000, temperature: float = 1.0
) -> dict[int, Tensor]:
    out = {}
    for p in packs(documents, budget):
        logps = response_logps_R(backbone, hidden_N_H(backbone, p), p, temperature)
        out |= {key: logps[p.segment_R == b] for b, key in enumerate(p.keys)}
    return out


def assert_same(
    found: dict[int, Tensor], expected: dict[int, Tensor], tolerance: float = 1e-5
) -> None:
    assert found.keys() == expected.keys()
    for key, logps in expected.items():
        assert_close(found[key], logps, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("budget", [1, 60, 10_000])
def test_packed_log_probs_equal_one_row_per_response(backbone: Backbone, budget: int) -> None:
    documents = random_documents(SHAPES)
    with backbone.role("policy"):
        assert_same(
            packed_logps(backbone, documents, budget), plain_logps(backbone.causal_lm, documents)
        )


def test_bare_base_equals_the_model_that_transformers_loads(
    backbone: Backbone, family: str, tiny_folders: Callable[[str], Path]
) -> None:
    documents = random_documents(SHAPES)
    with backbone.role(None), torch.no_grad():
        assert_same(
            packed_logps(backbone, documents),
            plain_logps(plain(tiny_folders(family), family), documents),
        )


def test_packed_adapter_gradients_equal_one_row_per_response(backbone: Backbone) -> None:
    documents = random_documents(SHAPES)
    weights = {key: 1.0 + 0.3 * key for key, _, _ in rows(documents)}
    found = []
    for logps_of in (
        lambda: packed_logps(backbone, documents),
        lambda: plain_logps(backbone.causal_lm, documents),
    ):
        with backbone.role("policy", train=True):
            loss = sum(weights[key] * logps.sum() for key, logps in logps_of().items())
            found.append(torch.autograd.grad(loss, backbone.parameters("policy")))
    scale = max(float(g.abs().max()) for g in found[1])
    for packed, single in zip(*found, strict=True):
        assert_close(packed, single, atol=1e-5 * scale, rtol=1e-5)
    assert all(g.abs().max() > 0 for g in found[1])


def test_eager_attention_takes_the_packed_mask_too(tiny_folder: Path) -> None:
    documents = random_documents(SHAPES)
    found = []
    for attention in ("eager", "sdpa"):
        backbone = load(tiny_folder, attention=attention)
        add_random_role(backbone, "policy")
        with backbone.role("policy"):
            found.append(packed_logps(backbone, documents))
    assert_same(*found)


def test_gradient_checkpointing_changes_no_gradient(tiny_folder: Path) -> None:
    p = pack(random_documents(SHAPES))
    found = []
    for recompute in ("none", "block"):
        backbone = load(tiny_folder, gradient_checkpointing=recompute)
        add_random_role(backbone, "policy")
        with backbone.role("policy", train=True):
            loss = response_logps_R(backbone, hidden_N_H(backbone, p), p).sum()
            found.append(torch.autograd.grad(loss, backbone.parameters("policy")))
    for plain_grad, *recomputed in zip(*found, strict=True):
        for grad in recomputed:
            assert_close(grad, plain_grad)


LENGTHS = st.lists(
    st.tuples(st.integers(1, 15), st.lists(st.integers(1, 12), min_size=1, max_size=3)),
    min_size=1,
    max_size=5,
)


@settings(deadline=None, max_examples=20, derandomize=True)
@given(shapes=LENGTHS, budget=st.integers(1, 150), order=st.randoms(use_true_random=False))
def test_log_probs_do_not_depend_on_budget_or_order(
    llama: Backbone, shapes: list[tuple[int, list[int]]], budget: int, order: random.Random
) -> None:
    documents = random_documents(shapes)
    shuffled = order.sample(documents, len(documents))
    with llama.role("policy"):
        assert_same(packed_logps(llama, shuffled, budget), packed_logps(llama, documents, budget=1))


def changed(ids: list[int], where: int) -> list[int]:
    return [*ids[:where], (ids[where] + 1) % VOCABULARY, *ids[where + 1 :]]


def test_changing_a_branch_touches_no_other_log_prob(backbone: Backbone) -> None:
    documents = random_documents([(6, [5]), (10, [7, 6, 8]), (4, [9])])
    middle = documents[1]
    swapped = Document(
        middle.prompt_ids,
        [
            middle.responses_ids[0],
            changed(list(middle.responses_ids[1]), 0),
            middle.responses_ids[2],
        ],
        middle.keys,
    )
    with backbone.role("policy"):
        before = packed_logps(backbone, documents)
        after = packed_logps(backbone, [documents[0], swapped, documents[2]])
    touched = middle.keys[1]
    assert_same(
        {k: v for k, v in after.items() if k != touched},
        {k: v for k, v in before.items() if k != touched},
        1e-6,
    )
    assert ((after[touched] - before[touched]).abs() > 1e-4).all()


def test_changing_a_prompt_touches_its_own_document_alone(backbone: Backbone) -> None:
    documents = random_documents([(6, [5]), (10, [7, 6]), (4, [9])])
    swapped = Document(
        changed(list(documents[1].prompt_ids), 9), documents[1].responses_ids, documents[1].keys
    )
    with backbone.role("policy"):
        before = packed_logps(backbone, documents)
        after = packed_logps(backbone, [documents[0], swapped, documents[2]])
    own = set(swapped.keys)
    assert_same(
        {k: v for k, v in after.items() if k not in own},
        {k: v for k, v in before.items() if k not in own},
        1e-6,
    )
    assert all((after[k] - before[k]).abs()[0] > 1e-4 for k in own)


def test_chunk_size_changes_neither_log_probs_nor_gradients_nor_entropy(
    llama: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    p = pack(random_documents(SHAPES))
    found = []
    for size in (3, 256):
        monkeypatch.setattr(forward, "CHUNK", size)
        with llama.role("policy", train=True):
            hidden = hidden_N_H(llama, p)
            logps, entropy = response_logps_R(llama, hidden, p), entropy_R(llama, hidden, p)
            grads = torch.autograd.grad(logps.sum() + entropy.sum(), llama.parameters("policy"))
        found.append([logps.detach(), entropy.detach(), *grads])
    for small, large in zip(*found, strict=True):
        assert_close(small, large, atol=1e-4, rtol=1e-5)
    assert_close(found[0][0], found[1][0], atol=1e-6, rtol=0)


def test_no_more_than_one_chunk_of_logits_exists_at_a_time(
    llama: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward, "CHUNK", 4)
    shapes: list[tuple[int, ...]] = []
    head = llama.causal_lm.get_output_embeddings()
    handle = head.register_forward_hook(
        lambda module, args, output: shapes.append(tuple(output.shape))
    )
    try:
        with llama.role("policy", train=True):
            p = pack(random_documents(SHAPES))
            hidden = hidden_N_H(llama, p)
            (
                response_logps_R(llama, hidden, p).sum() + entropy_R(llama, hidden, p).sum()
            ).backward()
    finally:
        handle.remove()
    assert max(rows for rows, _ in shapes) == 4
    assert len(shapes) == 2 * 2 * -(
        -len(p.target_R) // 4
    )  # log-probs and entropy, forward and recomputed backward


@pytest.mark.parametrize("temperature", [0.5, 1.7])
def test_temperature_divides_the_logits(backbone: Backbone, temperature: float) -> None:
    documents = random_documents(SHAPES)
    with backbone.role("policy"):
        found = packed_logps(backbone, documents, temperature=temperature)
        assert_same(found, plain_logps(backbone.causal_lm, documents, temperature))


def test_entropy_is_that_of_the_next_token_distribution(llama: Backbone) -> None:
    (document,) = random_documents([(5, [6])])
    with llama.role("policy"):
        p = pack([document])
        entropy = entropy_R(llama, hidden_N_H(llama, p), p, temperature=0.7)
        row = torch.tensor([[*document.prompt_ids, *document.responses_ids[0]]])
        logits = llama.causal_lm(input_ids=row).logits[0, 4:-1] / 0.7
    assert_close(
        entropy, torch.distributions.Categorical(logits=logits).entropy(), atol=1e-5, rtol=1e-5
    )


def test_sum_by_branch_adds_each_response_and_passes_gradients() -> None:
    p = pack(random_documents([(3, [2, 4]), (2, [1])]))
    values = torch.arange(1.0, 8.0, requires_grad=True)
    sums = sum_by_branch_B(values, p)
    assert sums.tolist() == [1 + 2, 3 + 4 + 5 + 6, 7]
    (sums * torch.tensor([1.0, 10.0, 100.0])).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [1, 1, 10, 10, 10, 10, 100]


def test_gradient_of_shared_prompt_tokens_is_the_same_to_the_bit_every_time(
    llama: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many branches add to one prompt token's gradient; the order must not depend on how two
    threads race.
    """
    shared = pack([Document([5, 6, 7], [[9 + k % 40, 11] for k in range(400)], list(range(400)))])
    monkeypatch.setattr(forward, "CHUNK", 4096)  # large enough for torch to use its threads
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        hidden = torch.randn(
            len(shared.tokens_N), 64, generator=torch.Generator().manual_seed(0)
        ).requires_grad_()
        found = []
        for _ in range(20):
            (grad,) = torch.autograd.grad(response_logps_R(llama, hidden, shared).sum(), hidden)
            found.append(grad)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(found[0], other) for other in found[1:])
