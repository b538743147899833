"""References to results: what they stand for, what they share, and answers that are sampled
once.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from made_run import make_run

from prefloop.artifacts.references import Answers, identity_of, policy_of, resolve, slots
from prefloop.base.sealed import read_sealed, write_sealed
from prefloop.config import DataConfig, GenerationConfig
from prefloop.data.source import Source
from prefloop.data.sources import write_jsonl
from prefloop.errors import ConfigError, ModelError
from prefloop.export.adapter import export
from prefloop.export.merge import merge_adapters
from prefloop.pipeline.stage import files_read
from prefloop.pipeline.stages.answer import respond
from prefloop.records import Message, Prompt
from prefloop.rollouts.engine import TransformersEngine
from prefloop.runs.open import open_policies, runtimes_of


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """A run with sft, reward and ppo, and a file of prompts beside it."""
    folder = tmp_path_factory.mktemp("results")
    write_jsonl(
        folder / "prompts.jsonl", [Prompt(f"p{i}", [Message("user", f"q {i}")]) for i in range(3)]
    )
    return make_run(folder / "runs", "demo", tiny_folder)


def test_a_reference_says_what_its_artifact_says(run: Path) -> None:
    sft, ppo = policy_of(f"{run}:sft"), policy_of(f"{run}:ppo")
    manifest = json.loads((run / "artifacts" / "ppo" / "manifest.json").read_text())
    assert (
        ppo.key == manifest["key"]
        and ppo.origin.fingerprint == manifest["identity"]["backbone"]["model"]
    )
    assert (
        ppo.origin.settings["precision"] == "fp32"
        and ppo.origin.shape["r"] == 4
        and sft.key != ppo.key
    )
    # sft does not sample; the other stages of its run say how they do.
    assert (
        sft.generation == ppo.generation
        and sft.generation is not None
        and sft.generation.temperature == 0.9
    )
    assert (ppo.engine, ppo.output) == ("transformers", run.parent.resolve()) and next(
        iter(slots(run))
    ) == "sft"


def test_the_bare_model_an_artifacts_folder_and_a_file_of_answers_are_references_too(
    run: Path, tmp_path: Path
) -> None:
    base, ppo = policy_of(f"{run}:base"), policy_of(f"{run}:ppo")
    assert (
        base.folder is None
        and base.origin.fingerprint == ppo.origin.fingerprint
        and base.generation == ppo.generation
    )
    by_folder = policy_of(run / "artifacts" / "ppo")
    assert (by_folder.key, by_folder.folder) == (ppo.key, ppo.folder)
    (tmp_path / "answers.jsonl").write_text("")
    assert resolve(tmp_path / "answers.jsonl") == Answers(
        str(tmp_path / "answers.jsonl"), Source.of(tmp_path / "answers.jsonl")
    )


def test_what_is_no_result_is_named_with_what_there_is(
    run: Path, tmp_path: Path, tiny_folder: Path
) -> None:
    for reference, said in (
        (
            f"{run}:pppo",
            r"no finished result 'pppo' \(did you mean 'ppo'\?; one of sft, ppo, reward, base\)",
        ),
        (f"{run.parent}/dem:ppo", rf"did you mean '{run}'"),
        (f"{run.parent}/dem", rf"is not a result \(did you mean '{run}'"),
        (run, rf"several results: choose one of {run}:sft, {run}:ppo, {run}:base"),
        (f"{run}:reward", "is a reward model"),
        (tmp_path / "nothing", "is not a result"),
    ):
        with pytest.raises(ModelError, match=said):
            resolve(reference)
    gone = make_run(tmp_path, "gone", tiny_folder, slots=("sft", "ppo"))
    shutil.rmtree((gone / "artifacts" / "ppo").resolve())
    with pytest.raises(ModelError, match="gone from the store"):
        resolve(f"{gone}:ppo")
    adapter = (gone / "artifacts" / "sft" / "adapter_model.safetensors").resolve()
    adapter.write_bytes(adapter.read_bytes()[:-1] + b"\x01")
    with pytest.raises(ModelError, match=r"does not match manifest.json \(its hash differs\)"):
        resolve(f"{gone}:sft")


def logits(opened_runtime, role: str | None) -> torch.Tensor:
    with opened_runtime.backbone.role(role):
        return opened_runtime.backbone.causal_lm(torch.arange(9, 30)[None]).logits


def test_a_policy_whose_key_holds_the_temperature_alone_samples_as_its_run_does(
    tmp_path: Path, tiny_folder: Path
) -> None:
    """By its run, by its folder, and exported; another result of the run may sample otherwise."""
    run = make_run(tmp_path / "runs", "t", tiny_folder, slots=("sft", "dpo"))
    found = policy_of(f"{run}:dpo")
    assert "generation" not in identity_of((run / "artifacts" / "dpo").resolve())
    assert (
        found.generation == GenerationConfig(max_new_tokens=12, temperature=0.9)
        and found.engine == "transformers"
    )
    for other in ((run / "artifacts" / "dpo").resolve(), export(f"{run}:dpo", tmp_path / "out")):
        same = policy_of(other)
        assert (same.generation, same.engine) == (found.generation, found.engine)
    merge_adapters([f"{run}:dpo", f"{run}:dpo"], tmp_path / "merged")
    assert policy_of(tmp_path / "merged").generation == found.generation


def test_policies_share_one_backbone_and_each_computes_its_own(run: Path, tmp_path: Path) -> None:
    opened = open_policies([f"{run}:sft", f"{run}:ppo", f"{run}:base"])
    found = {name: logits(opened.runtime, role) for name, role in opened.roles.items()}
    alone = open_policies([f"{run}:ppo"])
    assert torch.equal(found[f"{run}:ppo"], logits(alone.runtime, alone.roles[f"{run}:ppo"]))
    assert opened.roles[f"{run}:base"] is None
    a, b, c = found.values()
    assert min(float((x - y).abs().max()) for x, y in ((a, b), (b, c), (a, c))) > 1e-2
    # A folder of PEFT's own says nothing but its shape; the run beside it says the rest.
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        (tmp_path / "bare").mkdir(exist_ok=True)
        shutil.copy(run / "artifacts" / "ppo" / name, tmp_path / "bare" / name)
    role = opened.add(policy_of(tmp_path / "bare"))
    assert role and torch.equal(logits(opened.runtime, role), found[f"{run}:ppo"])
    assert opened.add(policy_of(tmp_path / "bare")) == role
    alone = open_policies([tmp_path / "bare"], generation={"max_new_tokens": 3})
    assert alone.runtime.generation.max_new_tokens == 3
    close = logits(alone.runtime, next(iter(alone.roles.values())))
    tolerance = (
        1e-3 if close.dtype == torch.float32 else 0.3
    )  # bf16 storage: some processors compute in it too
    assert (close.float() - found[f"{run}:ppo"]).abs().max() < tolerance


def test_adapters_of_different_backbones_are_refused_with_names_and_what_differs(
    run: Path, tmp_path: Path, tiny_folders: Callable[[str], Path], tiny_folder: Path
) -> None:
    qwen = make_run(tmp_path, "qwen", tiny_folders("qwen2"), slots=("sft",))
    with pytest.raises(
        ModelError,
        match=rf"'{run}:sft' and '{qwen}:sft' belong to different backbones: model .* and ",
    ):
        open_policies([f"{run}:sft", f"{qwen}:sft"])
    wide = make_run(
        tmp_path, "wide", tiny_folder, slots=("sft",), adapter={"r": 8, "alpha": 8}, precision="nf4"
    )
    with pytest.raises(ModelError, match="precision fp32 and nf4; r 4 and 8"):
        open_policies([f"{run}:sft", f"{wide}:sft"])
    opened = open_policies([f"{run}:sft"])
    with pytest.raises(ModelError, match="different backbones"):
        opened.add(policy_of(f"{wide}:sft"))
    with pytest.raises(ModelError, match="is not the model that"):
        open_policies([f"{run}:sft"], model=str(tiny_folders("qwen2")))


def test_answers_are_those_of_the_policy_and_cost_nothing_a_second_time(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = run.parent.parent / "prompts.jsonl"
    names = [f"{run}:sft", f"{run}:base", f"{run}:ppo"]
    found = respond(names, prompts, samples=2)
    assert list(found) == names and "reused" not in capsys.readouterr().out
    rows = {
        name: [json.loads(line) for line in answers.path.read_text().splitlines()]
        for name, answers in found.items()
    }
    assert [row["id"] for row in rows[names[0]]] == ["p0", "p0", "p1", "p1", "p2", "p2"]
    assert rows[names[0]][0]["prompt"] == [{"role": "user", "content": "q 0"}]
    assert len({tuple(row["response"] for row in side) for side in rows.values()}) == 3
    assert (
        respond(names, prompts, samples=2) == found
        and capsys.readouterr().out.count("reused answer") == 3
    )
    other = respond(names[:1], prompts, samples=2, generation={"temperature": 0.1})
    assert other[names[0]] != found[names[0]]
    assert respond(names[:1], prompts, samples=2, seed=1)[names[0]] not in (
        other[names[0]],
        found[names[0]],
    )
    with pytest.raises(ConfigError, match="--prompts"):
        respond(names)
    with pytest.raises(ConfigError, match="at least one answer"):
        respond(names, prompts, samples=0)


SAMPLING = {"max_new_tokens": 12, "temperature": 0.9}
"""That of the runs here."""


def test_adapters_of_two_methods_answer_one_after_the_other(
    run: Path, tmp_path: Path, tiny_folder: Path
) -> None:
    other = make_run(
        tmp_path,
        "other",
        tiny_folder,
        slots=("sft",),
        adapter={"method": "prefix", "options": {"tokens": 3}},
    )
    prompts = run.parent.parent / "prompts.jsonl"
    names = [f"{run}:sft", f"{other}:sft", f"{run}:ppo"]
    found = respond(names, prompts)
    assert list(found) == names and len({answers.digest() for answers in found.values()}) == 3
    assert found[names[0]] == respond(names[:1], prompts)[names[0]]
    assert (
        found[names[1]].digest()
        == respond(names[1:2], prompts, generation=SAMPLING)[names[1]].digest()
    )
    with pytest.raises(
        ModelError,
        match=r"adapters of different kinds: method lora and prefix.*`prefloop judge` takes",
    ):
        open_policies(names)


def test_kinds_of_adapters_differ_in_nothing_else(
    run: Path, tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = make_run(
        tmp_path,
        "other",
        tiny_folder,
        slots=("sft",),
        adapter={"method": "dora", "r": 4},
        max_length=200,
    )
    export(f"{other}:sft", tmp_path / "out")
    (tmp_path / "out" / "manifest.json").unlink(missing_ok=True)  # PEFT's own folder says less
    policies = [policy_of(name) for name in (f"{run}:sft", str(tmp_path / "out"), f"{run}:base")]
    seen = [
        (kind, runtime.backbone_config, runtime.rollout, runtime.output, runtime.generation)
        for kind, runtime in runtimes_of(policies, str(tiny_folder), rollout="vllm")
    ]
    (kind, config, engine, output, generation), (other_kind, other_config, *others) = seen
    assert [p.name for p in kind] == [f"{run}:sft", f"{run}:base"] and other_kind == policies[1:2]
    assert (config.adapter.method, other_config.adapter.method) == ("lora", "dora")
    assert (
        dataclasses.replace(config, adapter=other_config.adapter) == other_config
        and config.max_length == 256
    )
    assert engine == "vllm" and others == ["transformers", output, generation]
    assert "sampled with transformers, because vLLM starts only once" in capsys.readouterr().out


def test_a_run_without_a_sampling_stage_samples_as_its_configuration_says(
    tmp_path: Path, tiny_folder: Path
) -> None:
    alone = make_run(tmp_path, "alone", tiny_folder, slots=("sft",))
    assert policy_of(f"{alone}:sft").generation is None
    told = {"rollout": "vllm", "generation": {"max_new_tokens": 7, "temperature": 0.3}, "data": {}}
    (alone / "summary.json").write_text(json.dumps({"config": told}))
    for slot in ("sft", "base"):
        policy = policy_of(f"{alone}:{slot}")
        assert policy.generation == GenerationConfig(max_new_tokens=7, temperature=0.3)
        assert policy.engine is None


def test_a_file_of_answers_stands_for_itself(run: Path, tmp_path: Path) -> None:
    (tmp_path / "answers.jsonl").write_text('{"id": "p0", "prompt": [], "response": "r"}\n')
    assert respond([tmp_path / "answers.jsonl"]) == {
        str(tmp_path / "answers.jsonl"): Source.of(tmp_path / "answers.jsonl")
    }


def test_a_stream_is_the_response_that_the_engine_samples_token_by_token(run: Path) -> None:
    opened = open_policies([f"{run}:ppo"])
    backbone = opened.runtime.backbone
    engine = TransformersEngine(backbone, opened.runtime.generation)
    engine.load_policy(opened.roles[f"{run}:ppo"])
    ids = backbone.chat.prompt_ids([Message("user", "try it")])
    heard: list[int] = []
    engine.stream(ids, 5, heard.append)
    assert heard == engine.generate([ids], 1, 5)[0].token_ids


def test_an_artifact_of_another_version_says_which_settings_are_not_read(
    tmp_path: Path, tiny_folder: Path
) -> None:
    old = make_run(tmp_path, "old", tiny_folder, slots=("sft",))
    path = (old / "artifacts" / "sft" / "manifest.json").resolve()
    manifest = read_sealed(path)
    path.write_text(path.read_text().replace('"block"', '"never"').replace('"none"', '"never"'))
    with pytest.raises(ModelError, match="damaged, its content is not what its digest says"):
        open_policies([f"{old}:sft"])
    manifest["identity"]["backbone"]["gradient_checkpointing"] = "sometimes"
    write_sealed(path, manifest)
    with pytest.raises(
        ModelError, match=r"does not read \(gradient_checkpointing: .*found 'sometimes'\)"
    ):
        open_policies([f"{old}:sft"])
    manifest["identity"]["backbone"]["gradient_checkpointing"] = "none"
    manifest["identity"]["backbone"]["chat_template"] = "0" * 64
    write_sealed(path, manifest)
    with pytest.raises(
        ModelError, match="a chat template from a file, which the artifact does not hold"
    ):
        open_policies([f"{old}:sft"])


def test_a_manifest_names_the_files_that_were_read_without_their_folders(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text("")
    data = DataConfig(prompts=tmp_path / "a.jsonl", reward_tests=[tmp_path / "b.jsonl"])
    assert files_read({"prompts": tmp_path / "a.jsonl", "limit": 3, "gone": tmp_path / "c"}) == {
        "prompts": "a.jsonl"
    }
    assert files_read({"data": data}) == {"prompts": "a.jsonl", "reward_tests[0]": "b.jsonl"}


def test_a_damaged_result_beside_one_does_not_keep_it_from_being_opened(
    tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """SFT does not sample: how its run does, the other results say."""
    run = make_run(tmp_path, "r", tiny_folder, slots=("sft", "dpo", "ppo"))
    damaged = (run / "artifacts" / "dpo" / "manifest.json").resolve()
    expected = policy_of(f"{run}:ppo").generation
    for slot in ("dpo", "ppo", "sft"):
        path = (run / "artifacts" / slot / "manifest.json").resolve()
        content = read_sealed(path)
        if slot == "sft":
            content["identity"].pop("generation", None)
        write_sealed(path, content)
    damaged.write_text("{")
    assert policy_of(f"{run}:sft").generation == expected
    assert "skipped dpo of the run" in capsys.readouterr().out
    (run / "artifacts" / "ppo" / "manifest.json").resolve().write_text("{")
    with pytest.raises(ModelError, match=r"manifest\.json: damaged"):
        policy_of(f"{run}:sft")
