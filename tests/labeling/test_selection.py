"""Choosing the next pairs: what is worth a label, how a batch is kept apart, what is left out, and
the command from pool to file.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import label_selection
import learning_curve
import numpy as np
import pytest
from counted import calls
from made_run import make_run
from scipy import sparse

from prefloop.cli import _main, guarded
from prefloop.config import (
    AdapterConfig,
    BackboneConfig,
    DataConfig,
    LabelConfig,
    OptimConfig,
    RewardConfig,
)
from prefloop.data.sources import load_comparisons, write_jsonl
from prefloop.errors import ConfigError, DataError, ModelError
from prefloop.labeling.pool import content_of, read_pool, unlabelled
from prefloop.labeling.scoring import open_reward, score_pool
from prefloop.labeling.selection import choose, disagreement, text_features
from prefloop.models.reward_model import Reward
from prefloop.pipeline.stages.label import Label
from prefloop.pipeline.stages.reward import RewardModel
from prefloop.records import Comparison, Message, Response, Vote
from prefloop.runs.runtime import Runtime


def pair(
    id: str, one: str = "", two: str = "", prompt: str = "", votes: tuple[Vote, ...] = ()
) -> Comparison:
    texts = [Response(one or f"good {id}"), Response(two or f"bad {id}")]
    return Comparison(id, [Message("user", prompt or f"q {id}")], texts, list(votes))


POOL = [pair(str(i)) for i in range(40)]


def test_disagreement_is_zero_for_members_that_agree_and_ln_2_for_opposite_certainties() -> None:
    found = disagreement(np.array([[0.5, 0.5], [0.9, 0.9], [0.0, 1.0], [0.3, 0.7]]))
    assert found[:2] == pytest.approx([0, 0], abs=1e-12) and found[2] == pytest.approx(
        math.log(2), abs=1e-9
    )
    # H(1/2) - H(0.3) for two members at 0.3 and 0.7
    assert found[3] == pytest.approx(math.log(2) + 0.3 * math.log(0.3) + 0.7 * math.log(0.7))
    mirrored = disagreement(1 - np.array([[0.2, 0.6, 0.9]]))
    assert mirrored == pytest.approx(disagreement(np.array([[0.2, 0.6, 0.9]])))


def test_disagreement_takes_contradiction_and_margin_takes_indecision() -> None:
    margin_PK = np.zeros((40, 2)) + 3.0
    margin_PK[7] = [4, -4]  # sure, in opposite ways
    margin_PK[8] = [0.1, 0.1]  # both undecided
    assert choose(POOL, 1, "disagreement", margin_PK=margin_PK)[0] == [7]
    assert set(choose(POOL, 2, "margin", margin_PK=margin_PK)[0]) == {7, 8}
    assert choose(POOL, 1, "margin", margin_PK=margin_PK + np.array([[0, 0.5]]))[0] == [7]


def test_length_takes_the_largest_difference_in_words() -> None:
    pool = [
        pair("a", "one", "one two"),
        pair("b", "one " * 30, "two"),
        pair("c", "one", "word " * 9),
    ]
    picked, value_P = choose(pool, 2, "length")
    assert picked == [1, 2] and value_P.tolist() == [1, 29, 8]


def test_the_same_seed_chooses_the_same_pairs_in_whatever_order_the_pool_comes() -> None:
    back = POOL[::-1]
    for method in ("random", "length"):
        one, again, other = (choose(POOL, 10, method, seed=seed)[0] for seed in (0, 0, 1))
        assert one == again != other
    ids = [POOL[i].id for i in choose(POOL, 10, "length")[0]]  # all differ by nothing: equals
    assert ids == [back[i].id for i in choose(back, 10, "length")[0]]


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_a_batch_is_spread_over_the_pool_instead_of_holding_copies(kind: str) -> None:
    # 10 copies of the most valuable pair (five of them mirrored) and 30 pairs of their own, of less
    # value.
    feature = np.eye(40)
    feature[:10] = np.eye(40)[0] * np.where(np.arange(10) % 2, 1.0, -1.0)[:, None]
    margin_PK = np.tile([2.0, -2.0], (40, 1))
    margin_PK[:10] = [4.0, -4.0]
    plain = choose(POOL, 10, "disagreement", margin_PK=margin_PK)[0]
    assert set(plain) == set(range(10))
    where = feature if kind == "dense" else sparse.csr_array(feature)
    apart = choose(POOL, 10, "disagreement", margin_PK=margin_PK, feature_PH=where)[0]
    assert apart[0] < 10 and sum(i < 10 for i in apart) == 1 and len(set(apart)) == 10


def test_no_prompt_gets_more_than_its_share() -> None:
    pool = [pair(f"{p}/{k}", prompt=f"prompt {p}") for p in range(5) for k in range(8)]
    margin_PK = np.random.default_rng(0).normal(size=(40, 3))
    feature = np.random.default_rng(1).normal(size=(40, 4))
    for chosen in (
        choose(pool, 100, "random", per_prompt=2)[0],
        choose(pool, 100, "disagreement", margin_PK=margin_PK, feature_PH=feature, per_prompt=2)[0],
    ):
        assert len(chosen) == 10
        assert all(sum(pool[i].id.startswith(f"{p}/") for i in chosen) == 2 for p in range(5))


def test_the_choice_does_not_depend_on_the_order_of_the_responses() -> None:
    draw = np.random.default_rng(0)
    margin_PK, feature = draw.normal(size=(40, 4)), draw.normal(size=(40, 8))
    sign = np.where(draw.random(40) < 0.5, 1.0, -1.0)[:, None]
    swapped = [p.swap() if s < 0 else p for p, s in zip(POOL, sign[:, 0], strict=True)]
    assert (
        choose(POOL, 15, "disagreement", margin_PK=margin_PK, feature_PH=feature)[0]
        == (
            choose(
                swapped, 15, "disagreement", margin_PK=margin_PK * sign, feature_PH=feature * sign
            )[0]
        )
    )
    assert (abs(text_features(POOL) - text_features(swapped)) > 1e-12).nnz == 0


def test_the_work_grows_with_the_pool_not_with_its_square() -> None:
    """Pairs are compared with those chosen, never all with all."""
    draw = np.random.default_rng(0)

    def work(count: int, texts: bool) -> int:
        pool = [pair(str(i)) for i in range(count)]
        margin_PK, dense = (
            draw.normal(size=(count, 4)),
            draw.normal(size=(count, 32)).astype(np.float32),
        )
        feature = text_features(pool) if texts else dense
        return calls(
            lambda: choose(pool, 20, "disagreement", margin_PK=margin_PK, feature_PH=feature)
        )

    for texts in (False, True):
        assert work(2000, texts) < 4.5 * work(500, texts)


def test_what_cannot_be_done_is_said() -> None:
    with pytest.raises(ConfigError, match="--rewards"):
        choose(POOL, 1, "disagreement")
    with pytest.raises(ConfigError, match=r"reward.members: 4"):
        choose(POOL, 1, "disagreement", margin_PK=np.zeros((40, 1)))
    with pytest.raises(ConfigError, match="count and per_prompt"):
        choose(POOL, 0, "random")
    with pytest.raises(ConfigError, match="'best' is unknown"):
        choose(POOL, 1, "best")


def test_labeled_pairs_are_left_out_by_id_by_content_and_by_their_votes() -> None:
    same_content = pair("renamed", "good 3", "bad 3", "q 3").swap()
    done = [pair("1", "other words", "and others"), same_content]
    voted = pair("voted", votes=(Vote("a", 0),))
    found = unlabelled([*POOL, voted, pair("again", "good 5", "bad 5", "q 5")], done)
    assert {p.id for p in found.pairs} == {p.id for p in POOL} - {"1", "3"}
    assert (found.voted, found.labeled) == (1, 3)
    assert content_of(pair("x")) == content_of(pair("x").swap()) != content_of(pair("y"))


def test_candidates_become_pairs_and_bad_rows_are_named(tmp_path: Path) -> None:
    prompt = [{"role": "user", "content": "q"}]
    texts = [{"text": t} for t in ("a", "b", "a", " ")]
    (tmp_path / "c.jsonl").write_text(
        json.dumps({"id": "p", "prompt": prompt, "responses": texts, "meta": {}}) + "\n"
    )
    assert [p.id.partition("#")[0] for p in read_pool(tmp_path / "c.jsonl").pairs] == [
        "p/0-1"
    ]  # b with the second a is the same pair
    (tmp_path / "bad.jsonl").write_text(
        json.dumps({"id": "p", "prompt": prompt, "responses": texts})
        + "\n"
        + json.dumps({"id": "r", "prompt": prompt})
    )
    with pytest.raises(DataError, match=r"row 2, field 'responses': is missing"):
        read_pool(tmp_path / "bad.jsonl")
    write_jsonl(tmp_path / "voted.jsonl", [pair("1", votes=(Vote("a", 0),))])
    with pytest.raises(DataError, match="none of its 1 pairs is left to label"):
        read_pool(tmp_path / "voted.jsonl")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """A run folder with an ensemble of three."""
    folder = tmp_path_factory.mktemp("run")
    write_jsonl(folder / "pairs.jsonl", [pair(f"l{i}", votes=(Vote("a", 0),)) for i in range(12)])
    config = BackboneConfig(
        model=str(tiny_folder),
        precision="fp32",
        max_length=128,
        adapter=AdapterConfig(r=4, alpha=8),
    )
    runtime = Runtime(config, output=folder / "runs")
    comparisons = Label(
        LabelConfig(source="file"), DataConfig(comparisons=folder / "pairs.jsonl")
    ).run(runtime)
    reward = RewardConfig(
        members=3,
        batch_pairs=4,
        holdout=0.25,
        optim=OptimConfig(learning_rate=1e-2, warmup_steps=0),
    )
    artifact = RewardModel(reward, from_sft=False).run(runtime, comparisons=comparisons)
    (folder / "runs" / "first" / "artifacts").mkdir(parents=True)
    (folder / "runs" / "first" / "artifacts" / "reward").symlink_to(artifact.path.resolve())
    return folder


def test_scores_of_a_pool_are_the_reward_models_own(run: Path) -> None:
    reward = open_reward(run / "runs" / "first")
    assert isinstance(reward, Reward) and len(reward.heads) == 3
    pool = [
        pair("a", prompt="same"),
        pair("long", prompt="word " * 400),
        pair("b", prompt="same"),
        pair("c"),
    ]
    found = score_pool(reward, pool, 128)
    assert found.positions == [0, 2, 3] and found.too_long == 1
    assert found.margin_PK.shape == (3, 3) and found.feature_PH.shape == (
        3,
        reward.backbone.hidden_size,
    )
    turned = score_pool(reward, [p.swap() for p in pool], 128)
    assert np.allclose(found.margin_PK, -turned.margin_PK, atol=1e-5)
    assert np.allclose(found.feature_PH, -turned.feature_PH, atol=2e-3)
    alone = score_pool(reward, pool[:1], 128)
    assert np.allclose(alone.margin_PK[0], found.margin_PK[0], atol=1e-4)
    # The first member's head on these states gives its score: they are what it reads.
    weight = reward.heads[0].linear.weight.detach().numpy()[0] * math.sqrt(
        reward.backbone.hidden_size
    )
    by_hand = found.feature_PH @ weight / float(reward.heads[0].std)
    assert np.allclose(by_hand, found.margin_PK[:, 0], atol=2e-2)
    with pytest.raises(DataError, match="none of 1 pairs fits"):
        score_pool(reward, pool[1:2], 128)


def test_the_command_writes_pairs_ready_for_labeling(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_jsonl(run / "pool.jsonl", [*POOL, pair("l3")])
    arguments = [
        "label",
        "next",
        str(run / "pool.jsonl"),
        "--count",
        "6",
        "--output",
        str(run / "next.jsonl"),
    ]
    arguments += ["--rewards", str(run / "runs" / "first"), "--labelled", str(run / "pairs.jsonl")]
    assert guarded(_main, arguments) == 0
    out = capsys.readouterr().out
    assert "40 pairs to choose from (0 with votes and 1 labeled" in out
    assert "6 pairs by disagreement" in out and ": mean value" in out
    chosen = load_comparisons(run / "next.jsonl").records
    assert (
        len(chosen) == 6
        and {c.id for c in chosen} <= {p.id for p in POOL}
        and not any(c.votes for c in chosen)
    )
    assert (
        chosen[0].meta["selected"]["method"] == "disagreement"
        and chosen[0].meta["selected"]["value"] >= 0
    )
    assert guarded(_main, [*arguments, "--diversity", "text"]) == 0
    assert guarded(_main, [*arguments[:-4], "--method", "random", "--count", "100"]) == 0
    assert (
        "41 of 100 asked for" in (out := capsys.readouterr().out)
        and "mean value" not in out.splitlines()[-1]
    )
    assert guarded(_main, arguments[:-4]) == 2
    assert "name a run or a reward artifact with --rewards" in capsys.readouterr().err


def test_one_member_chooses_by_margin_unless_disagreement_is_asked_for(
    tmp_path: Path,
    tiny_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    alone = make_run(tmp_path / "runs", "alone", tiny_folder, slots=("reward",), members=1)
    write_jsonl(tmp_path / "pool.jsonl", POOL)
    arguments = [
        "label",
        "next",
        str(tmp_path / "pool.jsonl"),
        "--count",
        "6",
        "--rewards",
        str(alone),
    ]
    arguments += ["--output", str(tmp_path / "next.jsonl")]
    assert guarded(_main, arguments) == 0
    out = capsys.readouterr().out
    assert "by margin: the reward model has one member, and disagreement takes several" in out
    assert "6 pairs by margin in" in out
    assert (
        load_comparisons(tmp_path / "next.jsonl").records[0].meta["selected"]["method"] == "margin"
    )
    monkeypatch.setattr(
        "prefloop.labeling.scoring.open_reward", None
    )  # nothing is loaded for a mistake
    assert guarded(_main, [*arguments, "--method", "disagreement"]) == 2
    assert "needs an ensemble" in capsys.readouterr().err


def test_a_folder_without_a_reward_model_and_another_backbone_are_refused(
    run: Path, tiny_folders
) -> None:
    with pytest.raises(ModelError, match="neither a run with a reward model"):
        open_reward(run)
    with pytest.raises(ModelError, match="is not the model that"):
        open_reward(run / "runs" / "first", model=str(tiny_folders("qwen2")))


def test_the_benchmark_runs_small_and_goes_on_where_it_was(
    tmp_path: Path, tiny_folder: Path
) -> None:
    for name in ("pool", "test"):
        write_jsonl(
            tmp_path / f"{name}.jsonl",
            [pair(f"{name}{i}", votes=(Vote("a", 0),)) for i in range(14)],
        )
    arguments = [
        "--pool",
        str(tmp_path / "pool.jsonl"),
        "--test",
        str(tmp_path / "test.jsonl"),
        "--sizes",
        "4",
        "8",
    ]
    arguments += [
        "--output",
        str(tmp_path / "out"),
        "--model",
        str(tiny_folder),
        "--precision",
        "fp32",
        "--members",
        "2",
    ]
    arguments += ["--max-length", "128", "--candidates", "8", "--seeds", "0", "--least-steps", "1"]
    label_selection.main([*arguments, "--limit-s", "0"])
    assert json.loads((tmp_path / "out" / "results.json").read_text())["rows"] == []
    label_selection.main(arguments)
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [(row["method"], row["labels"]) for row in found["rows"]] == [
        (method, size) for size in (4, 8) for method in ("disagreement", "random", "length")
    ]
    start, later = found["summary"][0], found["summary"][-1]
    assert start["over_random"] == [0, 0, 0] and len(later["over_random"]) == 3
    assert (tmp_path / "out" / "curve.png").stat().st_size > 1000
    stored = sorted((tmp_path / "out" / ".store").glob("reward-*"))
    label_selection.main(arguments)
    assert sorted((tmp_path / "out" / ".store").glob("reward-*")) == stored
    again = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [row["accuracy"] for row in again["rows"]] == [row["accuracy"] for row in found["rows"]]
    assert found["overall"] == {}  # one seed says nothing of others
    rows = [row | {"seed": 1} for row in found["rows"]]
    (tmp_path / "other.json").write_text(json.dumps({"rows": rows}))
    label_selection.main(
        [
            "--join",
            str(tmp_path / "out" / "results.json"),
            str(tmp_path / "other.json"),
            "--output",
            str(tmp_path / "both"),
        ]
    )
    both = json.loads((tmp_path / "both" / "results.json").read_text())
    assert both["rows"] == again["rows"] + rows and all(
        len(entry["by_seed"]) == 2 for entry in both["summary"]
    )


def test_the_benchmark_pools_sizes_by_seed() -> None:
    def row(method: str, labels: int, seed: int, right: list[float]) -> dict:
        return {"method": method, "labels": labels, "seed": seed, "right": right}

    rows = [row(m, 4, s, [1, 0, 1, 0]) for m in ("length", "random") for s in range(3)]
    rows += [row("length", n, s, [1, 1, 1, 0.5 * s]) for n in (8, 16) for s in range(3)]
    rows += [row("random", n, s, [1, 0, 1, 0]) for n in (8, 16) for s in range(3)]
    found = learning_curve.overall(rows)
    assert list(found) == ["length"] and found["length"]["by_seed"] == [0.25, 0.375, 0.5]
    low, high = found["length"]["over_seeds"]
    # Student's t with two degrees of freedom: 4.3027 standard errors of 0.125 / sqrt(3).
    assert low == pytest.approx(
        0.375 - 4.3027 * 0.125 / 3**0.5, abs=1e-4
    ) and high == pytest.approx(0.75 - low)
    assert learning_curve.overall([r for r in rows if r["seed"] == 0]) == {}
