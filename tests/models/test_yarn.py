"""YaRN's promise at four times the context, on a model trained here; and the pipeline on a
stretched backbone, killed and resumed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from loop_run import ROOT, adapter_hash, finish, kill_at_step, run, start, statuses, write_config
from tiny import load, plain

sys.path.append(str(ROOT / "benchmarks"))
import yarn

ROPE = {"rope": {"type": "yarn", "factor": 4.0}, "max_length": 1024}
FLAGS = ("--backbone.rope.type", "yarn", "--backbone.rope.factor", "4", "--backbone.max-length")


def test_losses_by_position_are_those_of_transformers(tiny_folder: Path) -> None:
    backbone = load(tiny_folder, pack_tokens=300)
    backbone.add_role(yarn.ROLE)
    rows = torch.randint(9, 400, (3, 100), generator=torch.Generator().manual_seed(0)).tolist()
    documents = [yarn.Document(row[:1], [row[1:]], [i]) for i, row in enumerate(rows)]
    found = yarn.losses_D_E(backbone, documents, [0, 40, 100])
    ids_B_T = torch.tensor(rows)
    with torch.no_grad():
        logps_B_T = (
            plain(tiny_folder)(ids_B_T)
            .logits[:, :-1]
            .log_softmax(-1)
            .gather(2, ids_B_T[:, 1:, None])[..., 0]
        )
    first, second = (
        -logps_B_T[:, :39].mean(1),
        -logps_B_T[:, 39:].mean(1),
    )  # the first row of logits predicts position 1
    assert torch.allclose(found.float(), torch.stack([first, second], 1), atol=1e-5)


def test_documents_are_made_of_rows_one_after_another(tiny_folder: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    path = tmp_path / "rows.jsonl"
    pairs = [{"prompt": f"Row {i}", "chosen": "yes", "rejected": "no"} for i in range(40)]
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    all_of_them = yarn.long_documents([path], tokenizer, 50, 2, 1000)
    ids = [*all_of_them[0].prompt_ids, *all_of_them[0].responses_ids[0]]
    assert {len(document) for document in all_of_them} == {50}
    assert tokenizer.decode(ids).startswith("Row 0\n\nyes\n\nno<|im_end|>Row 1\n\nyes")
    some = yarn.long_documents([path], tokenizer, 50, 2, 3)
    assert some == [
        all_of_them[0],
        *all_of_them[-2:],
    ]  # the last are held out, whatever is learnt from
    with pytest.raises(SystemExit, match="40 are held out: name more files"):
        yarn.long_documents([path], tokenizer, 50, 40, 50)


def test_a_model_from_elsewhere_learns_each_way_from_the_same_start_and_documents(
    tiny_folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "rows.jsonl"
    pairs = [
        {"prompt": f"Row {i}", "chosen": "yes " * 60, "rejected": "no " * i} for i in range(40, 100)
    ]
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    flags = [
        "--model",
        str(tiny_folder),
        "--data",
        str(path),
        "--precision",
        "fp32",
        "--steps",
        "2",
        "--held",
        "2",
    ]
    found = yarn.main(yarn.parser().parse_args([*flags, "--output", str(tmp_path / "out.json")]))
    assert found["context"] == 512 and json.loads((tmp_path / "out.json").read_text()) == found
    rows = {(row["rope"], row["steps"]): row for row in found["rows"]}
    assert [*rows] == [(name, steps) for name in ("none", "yarn", "linear") for steps in (0, 2)]
    for (name, steps), row in rows.items():
        assert row["documents"] == row["past"]["n_clusters"] == 2
        assert row["past"]["mean"] == pytest.approx(sum(row["losses"][1:]) / 3)
        assert steps == 0 or row["whole"]["mean"] < rows[name, 0]["whole"]["mean"]  # it has learnt
        saved = row.get("yarn_saves", {"mean": 0.0})["mean"]
        assert saved == pytest.approx(row["past"]["mean"] - rows["yarn", steps]["past"]["mean"])
    again = yarn.main(yarn.parser().parse_args([*flags, "--limit-s", "0"]))
    assert again["rows"] == [
        {k: v for k, v in row.items() if k != "yarn_saves"} for row in found["rows"][:2]
    ]


@pytest.mark.slow
def test_four_times_the_context_costs_less_with_yarn_before_and_after_a_few_steps() -> None:
    arguments = yarn.parser().parse_args(["--pretraining", "500", "--steps", "6"])
    past = {(row["rope"], row["steps"]): row["past"]["mean"] for row in yarn.small(1, arguments)}
    for steps in (0, 6):
        assert past["yarn", steps] < past["none", steps] - 0.5
    assert past["yarn", 6] < past["yarn", 0] < past["linear", 0] - 0.5


@pytest.mark.slow
def test_a_run_on_a_stretched_backbone_goes_through_and_ends_the_same_after_a_kill(
    tmp_path: Path, tiny_folder: Path
) -> None:
    whole, cut = (tmp_path / name for name in ("whole", "cut"))
    for folder in (whole, cut):
        folder.mkdir()
        backbone = {
            "model": str(tiny_folder),
            "precision": "nf4",
            "adapter": {"r": 4, "alpha": 8},
            **ROPE,
        }
        write_config(folder, tiny_folder, backbone=backbone)
        row = {
            "id": "long",
            "prompt": "Tell me of the river. " * 60,
            "response": "It begins in the hills. " * 40,
        }
        with (folder / "demonstrations.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
    run(whole / "config.yaml", "--algo", "dpo")
    for stage in ("sft", "dpo"):
        kill_at_step(
            cut / "config.yaml", f"{stage} 3/", "--algo", "dpo"
        )  # past the first checkpoint
    run(cut / "config.yaml", "--algo", "dpo")
    found = statuses(cut / "config.yaml")
    assert (found["sft"], found["dpo"]) == ("reused", "resumed")
    for slot in ("sft", "dpo"):
        assert adapter_hash(whole / "config.yaml", slot) == adapter_hash(cut / "config.yaml", slot)
    described = json.loads(
        (whole / "runs" / "t" / "artifacts" / "sft" / "manifest.json").read_text()
    )
    assert described["identity"]["backbone"]["rope"] == {"type": "yarn", "factor": 4.0}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            (*FLAGS, "4096"),
            ("backbone.max_length is 4096, but", "has a context of 2048 tokens: lower it"),
        ),
        (
            ("--backbone.max-length", "1024"),
            (
                (
                    "has a context of 512 tokens: lower it, or make the context longer with"
                    " backbone.rope"
                ),
            ),
        ),
        (
            ("--backbone.rope.type", "yarm"),
            ("backbone.rope.type: unknown 'yarm' (did you mean 'yarn'?",),
        ),
        (("--backbone.rope.factor", "4"), ("backbone.rope.factor is 4 without a type",)),
        (
            ("--backbone.rope.type", "yarn"),
            ("backbone.rope.factor is 1: yarn makes the context longer",),
        ),
    ],
)
def test_wrong_lengths_and_ropes_are_said_in_a_line(
    tmp_path: Path, tiny_folder: Path, flags: tuple[str, ...], words: tuple[str, ...]
) -> None:
    code, output = finish(start(write_config(tmp_path, tiny_folder), *flags))
    assert code == 2 and "Traceback" not in output, output
    said = " ".join(output.split())
    assert all(word in said for word in words), output
