"""The planner's largest group is that of the file: all responses to a prompt stand in one document,
which nothing cuts.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_planner_command import plan
from tiny import tiny_tokenizer

from prefloop.config import (
    BackboneConfig,
    DataConfig,
    GenerationConfig,
    LabelConfig,
    RLHFConfig,
    SampleConfig,
)
from prefloop.data.chat import ChatFormat
from prefloop.data.encode import Encoder
from prefloop.data.groups import write_groups, write_thumbs
from prefloop.data.sources import copy_records
from prefloop.labeling.aggregation import aggregation
from prefloop.planning import groups
from prefloop.planning.groups import Group, candidates, of_file, unseen
from prefloop.planning.shapes import Shape, shape_of
from prefloop.planning.stages import Planner
from prefloop.records import Comparison, Rating


@pytest.fixture(scope="module")
def seven_b() -> Shape:
    return shape_of("shape:7b", Path("unused"))


def pairs(path: Path, on_one_prompt: int, characters: int = 4000) -> Path:
    rows = [
        {
            "prompt": "p",
            "chosen": f"{i} " + "a" * characters,
            "rejected": f"{i} " + "b" * characters,
        }
        for i in range(on_one_prompt)
    ]
    rows.append({"prompt": "q", "chosen": "yes", "rejected": "no"})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def thumbs(path: Path, ups: int, downs: int) -> Path:
    rows = [
        {"prompt": "p", "completion": f"w{i} w{i}", "label": i < ups} for i in range(ups + downs)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def from_file(path: Path | None, algo: str = "dpo", **data: Any) -> RLHFConfig:
    backbone = BackboneConfig(pack_tokens=2048, max_length=1024)
    return RLHFConfig(
        algo=algo,
        label=LabelConfig(source="file"),
        backbone=backbone,
        data=DataConfig(comparisons=path, **data),
    )


def test_eight_pairs_on_one_prompt_are_sixteen_responses(tmp_path: Path, seven_b: Shape) -> None:
    few, many = (from_file(pairs(tmp_path / f"{n}.jsonl", n)) for n in (1, 8))
    assert of_file(few) == Group(2, 1 + 2 * 1023) and of_file(many) == Group(16, 1 + 16 * 1023)
    for stage in ("reward", "dpo"):
        less, more = (
            next(s for s in Planner(c, seven_b).stages() if s.name == stage).peak
            for c in (few, many)
        )
        assert more > 3 * less


def test_short_responses_take_no_more_tokens_than_they_have_bytes(tmp_path: Path) -> None:
    assert of_file(from_file(pairs(tmp_path / "a.jsonl", 8, characters=10))) == Group(
        16, 1024 - 16 + 16 * 16
    )


def test_no_group_that_a_stage_writes_is_larger_than_planned(tmp_path: Path) -> None:
    encoder = Encoder(ChatFormat.load(tiny_tokenizer()), 128)
    backbone = BackboneConfig(max_length=128)
    for kind, path in (
        (Comparison, pairs(tmp_path / "p.jsonl", 5, 30)),
        (Rating, thumbs(tmp_path / "t.jsonl", 5, 2)),
    ):
        rows = tmp_path / "rows.jsonl"
        copy_records(kind, path, rows)
        if kind is Rating:
            written = write_thumbs(rows, tmp_path / "thumbs.arrow", encoder)
            documents = [written.thumbs(i).document for i in range(len(written))]
        else:
            documents = [
                group.document
                for group in write_groups(rows, tmp_path / "g.arrow", encoder, aggregation("share"))
            ]
        config = RLHFConfig(backbone=backbone, data=DataConfig(comparisons=path))
        planned = of_file(config, thumbs=kind is Rating)
        assert planned is not None
        assert max(len(d.responses_ids) for d in documents) == planned.responses
        assert max(map(len, documents)) <= planned.tokens


def test_kto_trains_on_all_thumbs_of_a_prompt_and_the_reward_model_on_its_pairs(
    tmp_path: Path,
) -> None:
    config = from_file(thumbs(tmp_path / "t.jsonl", 9, 1), "kto")
    assert (of_file(config, thumbs=True) or Group(0, 0)).responses == 10
    only_up = from_file(thumbs(tmp_path / "up.jsonl", 3, 0), "kto")
    assert of_file(only_up) is None and of_file(only_up, thumbs=True) and unseen(only_up) is None
    assert of_file(from_file(pairs(tmp_path / "p.jsonl", 2)), thumbs=True) is None


def test_only_rows_within_the_limit_count_and_a_changed_file_is_read_anew(tmp_path: Path) -> None:
    path = pairs(tmp_path / "a.jsonl", 8)
    assert (of_file(from_file(path, limit=3)) or Group(0, 0)).responses == 6
    assert (of_file(from_file(path)) or Group(0, 0)).responses == 16
    pairs(path, 9)
    assert (of_file(from_file(path)) or Group(0, 0)).responses == 18


@pytest.mark.parametrize(
    ("sampled", "pairs_per_prompt", "rounds", "responses"),
    [(4, 4, 1, 4), (8, 2, 1, 4), (4, 4, 3, 12), (8, 1, 2, 2 + 4)],
)
def test_each_round_adds_its_own_candidates(
    sampled: int, pairs_per_prompt: int, rounds: int, responses: int
) -> None:
    config = RLHFConfig(
        rounds=rounds,
        sample=SampleConfig(candidates=sampled),
        label=LabelConfig(pairs_per_prompt=pairs_per_prompt),
        backbone=BackboneConfig(max_length=1024),
        generation=GenerationConfig(max_new_tokens=100),
    )
    assert candidates(config) == Group(responses, 924 + responses * 100)


def test_what_is_not_known_of_groups_is_said(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("backbone: {model: 'shape:7b'}\nlabel: {source: file}\nalgo: dpo\n")
    words = [str(file), "--gpu", "80GiB", "--data.comparisons"]
    missing, there = tmp_path / "none.jsonl", pairs(tmp_path / "a.jsonl", 8)
    assert (
        f"groups of more than 2 responses to a prompt: data.comparisons '{missing}' cannot be read"
        in " ".join(" ".join(plan([*words, str(missing)], capsys)[1]).split())
    )
    assert "not counted" not in "".join(plan([*words, str(there)], capsys)[1])
    monkeypatch.setattr(groups, "LOOKED", 4)
    assert "rows after the first 4 of" in str(unseen(from_file(there)))
    assert unseen(from_file(there, limit=4)) is None
