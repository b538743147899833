"""What a user gets for bad input: exit code 2, a message that names file, row or field and what to
do, nothing in the store.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from loop_run import ROOT, finish, run, start, summary, write_config
from tiny import tiny_model

pytestmark = pytest.mark.slow


def refused(config: Path, *words: str, flags: tuple[str, ...] = ()) -> str:
    """The run must stop with code 2, say ``words``, show no traceback and leave no artifact of the
    failing stage.
    """
    code, output = finish(start(config, *flags))
    assert code == 2, output
    assert "Traceback" not in output, output
    for word in words:
        assert word in output, f"{word!r} not in:\n{output}"
    return output


def edit(config: Path, **changes: Any) -> Path:
    tree = yaml.safe_load(config.read_text())
    for dotted, value in changes.items():
        *path, last = dotted.split("__")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[last] = value
    config.write_text(yaml.safe_dump(tree))
    return config


@pytest.fixture
def config(tmp_path: Path, tiny_folder: Path) -> Path:
    return write_config(tmp_path, tiny_folder)


def test_unknown_yaml_key_names_the_nearest(config: Path) -> None:
    refused(
        edit(config, ppo__kl__coeff=0.1),
        "unknown key 'ppo.kl.coeff'",
        "did you mean 'ppo.kl.coef'?",
        "config.yaml",
    )


def test_wrong_type_names_the_field(config: Path) -> None:
    refused(edit(config, ppo__steps="many"), "'ppo.steps'", "many")


def test_unknown_flag_and_unknown_algorithm(config: Path) -> None:
    refused(config, "--ppo.kl.coeff", flags=("--ppo.kl.coeff", "1"))
    refused(config, "unknown algorithm 'dpoo'", "did you mean 'dpo'?", flags=("--algo", "dpoo"))
    assert refused(config, "did you mean 'dpo'?", flags=("--algo", "DPO")).count("reinforce") == 1


def test_too_few_steps_are_said_before_the_first(config: Path) -> None:
    output = run(config, "--algo", "kto", "--preference.epochs", "0.5")
    told, first = (
        output.index("in all, and under 20 little is learnt: lower preference.batch_pairs"),
        output.index("  kto 1/"),
    )
    assert told < first


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "is empty: it holds no rows"), (b"\x00\x01\x02" * 400, "eval.jsonl")],
)
def test_a_file_that_the_last_stages_read_is_looked_at_before_the_first(
    config: Path, content: bytes, said: str
) -> None:
    (config.parent / "eval.jsonl").write_bytes(content)
    assert "running" not in refused(config, said)


def test_adapters_that_cannot_be(config: Path) -> None:
    method = "--backbone.adapter.method"
    refused(
        config,
        "unknown method 'dorra'",
        "did you mean 'dora'?",
        "p-tuning-v2",
        flags=(method, "dorra"),
    )
    refused(
        config,
        "full trains on bf16 and fp32",
        "precision is nf4",
        "with nf4 go lora",
        flags=(method, "full"),
    )
    server = ("--rollout", "server", "--generation.server", "http://127.0.0.1:9")
    refused(
        config,
        "cannot run adapters of method prefix",
        "--rollout transformers",
        flags=(method, "prefix", *server),
    )
    layers = ("--backbone.adapter.target-modules", ".*query")
    refused(config, "'.*query' matches no layer", "q_proj", flags=layers)
    refused(
        config,
        "does not fit model.layers.0.self_attn.k_proj",
        "rank of 64",
        flags=("--backbone.adapter.r", "64"),
    )
    options = ("--backbone.adapter.options", "tokns", "3")
    refused(config, "options.tokns", "did you mean 'tokens'?", flags=(method, "prompt", *options))


def test_all_missing_files_are_named_at_once(config: Path, tmp_path: Path) -> None:
    output = refused(
        edit(
            config,
            data__prompts=str(tmp_path / "no.jsonl"),
            data__eval_prompts=str(tmp_path / "none.jsonl"),
        )
    )
    assert output.count("no.jsonl") == 1 and output.count("none.jsonl") == 1, output


def test_missing_files(config: Path, tmp_path: Path) -> None:
    refused(tmp_path / "no-such.yaml", "no-such.yaml", "does not exist")
    refused(
        edit(config, data__demonstrations=str(tmp_path / "nothing.jsonl")),
        "nothing.jsonl",
        "does not exist",
    )


def test_empty_dataset(config: Path, tmp_path: Path) -> None:
    (tmp_path / "demonstrations.jsonl").write_text("")
    refused(config, "demonstrations.jsonl", "empty")


def test_broken_row_is_named_and_can_be_quarantined(config: Path, tmp_path: Path) -> None:
    path = tmp_path / "demonstrations.jsonl"
    rows = path.read_text().splitlines()
    path.write_text("\n".join([*rows[:2], '{"id": "x", ', *rows[2:]]) + "\n")
    refused(config, "row 3", "quarantine")
    output = run(edit(config, data__bad_rows="quarantine", ppo__steps=1))
    assert "1 row quarantined" in output
    sft = tmp_path / "runs" / "t" / "artifacts" / "sft"
    assert json.loads((sft / "demonstrations.quarantine.jsonl").read_text())["row"] == 3


def test_pair_whose_chosen_equals_its_rejected(config: Path, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    good = {"prompt": "Say one.", "chosen": "One.", "rejected": "Two."}
    pairs.write_text(
        "\n".join(json.dumps(r) for r in (good, {**good, "prompt": "Again.", "rejected": "One. "}))
        + "\n"
    )
    refused(
        edit(config, label__source="file", data__comparisons=str(pairs)),
        "pairs.jsonl",
        "row 2",
        "rejected",
    )


def test_prompt_longer_than_the_context(config: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    rows[1]["prompt"][0]["content"] = "why " * 400
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    refused(config, rows[1]["id"], "tokens", "max_length")
    output = run(config, "--data.bad-rows", "quarantine")
    assert (
        "1 prompt set aside in prompts.too-long.quarantine.jsonl: prompt '" + rows[1]["id"]
        in output
    )
    kept = tmp_path / "runs" / "t" / "artifacts" / "ppo" / "prompts.too-long.quarantine.jsonl"
    assert [json.loads(line)["id"] for line in kept.open()] == [rows[1]["id"]]


def test_two_simulated_annotators_of_one_name_are_refused(config: Path) -> None:
    people = [
        {"name": "ann", "noise": 0.1},
        {"name": "ben", "noise": 0.1},
        {"name": "ann", "noise": 0.3},
    ]
    refused(edit(config, label__annotators=people), "label.annotators: two are called 'ann'")


def test_a_demonstration_that_does_not_fit_is_set_aside_as_bad_rows_are(
    config: Path, tmp_path: Path
) -> None:
    path = tmp_path / "demonstrations.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for i in (1, 4):
        rows[i]["prompt"][0]["content"] = "why " * 400
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    refused(
        config,
        f"2 of 12 rows cannot be used, the first: prompt '{rows[1]['id']}'",
        "bad_rows: quarantine",
    )
    output = run(config, "--data.bad-rows", "quarantine", "--algo", "sft")
    assert f"2 rows set aside in too-long.quarantine.jsonl: prompt '{rows[1]['id']}'" in output
    kept = tmp_path / "runs" / "t" / "artifacts" / "sft" / "too-long.quarantine.jsonl"
    assert [json.loads(line)["id"] for line in kept.open()] == [rows[1]["id"], rows[4]["id"]]


def test_max_length_beyond_the_models_context(config: Path) -> None:
    refused(edit(config, backbone__max_length=100_000), "100000", "context")


def test_truncated_responses_are_counted(config: Path, tmp_path: Path) -> None:
    rows = [
        json.loads(line) for line in (tmp_path / "demonstrations.jsonl").read_text().splitlines()
    ]
    rows[0]["response"] = "It is so because " + "very " * 400 + "much."
    (tmp_path / "demonstrations.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    output = run(edit(config, algo="sft"))
    assert "truncated responses: 1 of 12" in output
    assert (
        next(s for s in summary(config)["stages"] if s["name"] == "sft")["metrics"]["truncated"]
        == 1
    )


def test_model_without_a_chat_template(config: Path, tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "bare", tokenizer="no-template")
    refused(edit(config, backbone__model=str(model)), "no chat template", "backbone.chat_template")


def test_pad_equal_to_eos_is_handled_and_said(config: Path, tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "same", tokenizer="pad-is-eos")
    output = run(edit(config, backbone__model=str(model), ppo__steps=1))
    assert (
        "pad token: equals EOS; handled" in output
        and "12 of 12 responses end in <|im_end|>" in output
    )


def test_model_that_does_not_exist(config: Path, tmp_path: Path) -> None:
    refused(
        edit(config, backbone__model="nobody/nothing"),
        "model 'nobody/nothing' was not found",
        "hub",
        "wheels",
    )


def test_gold_scorer_that_is_not_there(config: Path) -> None:
    refused(edit(config, gold="examples/demo/gold.py:scoore"), "scoore")


def test_disk_full_leaves_the_store_whole(config: Path, tmp_path: Path) -> None:
    disk = tmp_path / "small"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        refused(edit(config, output=str(disk)), "is full", "free some space")
        assert not [p for p in (disk / ".store").glob("*-*") if not (p / "manifest.json").is_file()]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_examples_parse() -> None:
    from prefloop.config.load import load_config

    for path in sorted((ROOT / "examples").glob("*.yaml")):
        assert load_config(path).run
