"""The layout of packs: budgets, order, positions, mask."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import random_documents

from prefloop.data.packing import Document, pack, packs

SHAPES = st.lists(
    st.tuples(st.integers(1, 20), st.lists(st.integers(1, 15), min_size=1, max_size=4)),
    min_size=1,
    max_size=8,
)


@settings(max_examples=100)
@given(shapes=SHAPES, budget=st.integers(1, 120))
def test_every_response_is_packed_once_within_the_budget(
    shapes: list[tuple[int, list[int]]], budget: int
) -> None:
    documents = random_documents(shapes)
    made = packs(documents, budget)
    responses = {
        k: list(ids) for d in documents for k, ids in zip(d.keys, d.responses_ids, strict=True)
    }
    unpacked = {
        key: p.target_R[p.segment_R == b].tolist() for p in made for b, key in enumerate(p.keys)
    }
    assert sum(len(p.keys) for p in made) == len(responses)
    assert unpacked == responses
    for p in made:
        assert len(p.tokens_N) <= budget or p.document_N.max() == 0
        assert sum(p.length_B.tolist()) == len(p.target_R) == len(p.source_R)


@settings(max_examples=50)
@given(shapes=SHAPES)
def test_each_response_is_predicted_from_the_token_before_it(
    shapes: list[tuple[int, list[int]]],
) -> None:
    documents = random_documents(shapes)
    p = pack(documents)
    of_key = {
        k: (d, list(ids)) for d in documents for k, ids in zip(d.keys, d.responses_ids, strict=True)
    }
    for b, key in enumerate(p.keys):
        document, response = of_key[key]
        row = [*document.prompt_ids, *response]
        sources = p.source_R[p.segment_R == b]
        assert p.tokens_N[sources].tolist() == row[len(document.prompt_ids) - 1 : -1]
        assert p.positions_N[sources].tolist() == list(
            range(len(document.prompt_ids) - 1, len(row) - 1)
        )
        assert int(p.tokens_N[p.last_B[b]]) == response[-1]


@settings(max_examples=15)
@given(shapes=SHAPES)
def test_a_token_sees_exactly_its_prompt_and_its_own_branch_so_far(
    shapes: list[tuple[int, list[int]]],
) -> None:
    p = pack(random_documents(shapes))
    mask = p.mask_NN()
    place = list(zip(p.document_N.tolist(), p.branch_N.tolist(), strict=True))
    for q, k in itertools.product(range(len(place)), repeat=2):
        document, branch = place[k]
        assert bool(mask[q, k]) == (
            k <= q and document == place[q][0] and branch in (0, place[q][1])
        )


def test_packing_is_deterministic_and_wastes_little() -> None:
    documents = random_documents([(10, [10])] * 3 + [(5, [5])] * 6)
    made = packs(documents, budget=30)
    assert [len(p.tokens_N) for p in made] == [30, 30, 30, 30]
    again = packs(documents, budget=30)
    assert [p.keys for p in made] == [p.keys for p in again]


def test_moving_a_pack_keeps_its_keys_and_moves_every_tensor() -> None:
    moved = pack(random_documents([(3, [2, 4])])).to(torch.device("meta"))
    assert moved.keys == (0, 1)
    assert {t.device.type for t in vars(moved).values() if isinstance(t, torch.Tensor)} == {"meta"}


@pytest.mark.parametrize(
    ("prompt", "responses", "keys", "message"),
    [
        ([], [[1]], [0], "prompt token"),
        ([1], [[1], []], [0, 1], "empty response"),
        ([1], [[1]], [0, 1], "2 keys"),
        ([1], [], [], "0 keys"),
    ],
)
def test_impossible_documents_are_refused(
    prompt: list[int], responses: list[list[int]], keys: list[int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Document(prompt, responses, keys)
