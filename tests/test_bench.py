"""lm-eval on a run's adapters: equal to lm_eval by itself, paired, resumable, and no code from task files."""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from made_run import Made, make_run
from tiny import add_random_role, load, tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from prefloop.bench import compare, tasks
from prefloop.bench import run as bench_run
from prefloop.bench.harness import Metric, Settings, language_model, measure
from prefloop.bench.run import Domain, bench
from prefloop.bench.tasks import find, sandboxed
from prefloop.bench.tasks import load as load_task
from prefloop.config import AdapterConfig, BackboneConfig, BenchConfig, DataConfig, GenerationConfig, RLHFConfig
from prefloop.errors import ConfigError, DataError, ModelError
from prefloop.models.plain import plain
from prefloop.pipeline import Pipeline
from prefloop.rollouts.engine import start
from prefloop.runtime import Runtime
from prefloop.stages.bench import Bench

EXAMPLES = Path(__file__).parents[1] / "examples" / "bench"
LIMIT = 6
WORDS = """
task: words_file
dataset_path: json
dataset_kwargs: {{data_files: {{test: {}}}}}
test_split: test
output_type: generate_until
doc_to_text: question
doc_to_target: river
generation_kwargs: {{until: [the end], max_gen_toks: 12, do_sample: false}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""
# lm_eval as its console script starts it, several times in one process: its imports and its index of tasks take most of a run.
LM_EVAL = """
import json, sys
import lm_eval.tasks.manager as manager
from lm_eval.__main__ import cli_evaluate
index, manager.TaskIndex.build = manager.TaskIndex.build, staticmethod(lambda paths, **_: index(paths[1:]))  # only --include_path
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["lm_eval", *arguments]
    cli_evaluate()
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Rows as HellaSwag and TruthfulQA have them, made up."""
    folder = tmp_path_factory.mktemp("data")
    swag, truth = folder / "swag.jsonl", folder / "truth.jsonl"
    rows: list[dict[str, Any]] = []
    questions: list[dict[str, Any]] = []
    for i in range(10):
        endings = [
            f"goes to the river {i} times.",
            "[header] waits [title] for the weather.",
            f"jumps  over {i} dogs.",
            "asks a question",
        ]
        rows.append(
            {
                "activity_label": "Learning",
                "ctx_a": f"A fox number {i} is shown.",
                "ctx_b": "the fox",
                "endings": endings,
                "label": i % 4,
            }
        )
        answers = {f"It is number {i}": int(i % 3 != 0), "It is the river": 0, f"Nobody knows {i}": int(i % 3 == 0)}
        questions.append({"question": f"What is the town number {i}?", "mc1_targets": answers})
    swag.write_text("".join(json.dumps(row) + "\n" for row in rows))
    truth.write_text("".join(json.dumps(row) + "\n" for row in questions))
    return {"hellaswag_file": swag, "truthfulqa_mc1_file": truth}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """A run with sft and ppo on a tiny model."""
    return make_run(tmp_path_factory.mktemp("runs"), "t", tiny_folder, slots=("sft", "ppo"))


def with_data(folder: Path, data: dict[str, Path]) -> Path:
    """The example tasks with these data files written into them, as lm_eval needs them."""
    folder.mkdir()
    for file, task, row in (
        ("hellaswag.yaml", "hellaswag_file", "hellaswag_val1k"),
        ("truthfulqa_mc1.yaml", "truthfulqa_mc1_file", "truthfulqa"),
    ):
        text = (EXAMPLES / file).read_text()
        (folder / file).write_text(text.replace(f"../shared/data/{row}.jsonl.gz", str(data[task])))
    return folder


@pytest.fixture(scope="module")
def by_itself(tmp_path_factory: pytest.TempPathFactory, data: dict[str, Path]) -> Path:
    """lm_eval on one ``adapter`` over the fp32 and nf4 weights of ``model``: its output in ``fp32`` and ``nf4``."""
    place = tmp_path_factory.mktemp("lm_eval")
    tiny_folder = tiny_model(place / "model", repetition_penalty=1.5)
    backbone = load(tiny_folder)
    add_random_role(backbone, "ppo")
    backbone.save_role("ppo", place / "adapter")
    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    AutoModelForCausalLM.from_pretrained(
        tiny_folder, quantization_config=settings, dtype=torch.float32
    ).save_pretrained(place / "nf4-model")
    AutoTokenizer.from_pretrained(tiny_folder).save_pretrained(place / "nf4-model")
    folder = with_data(place / "tasks", data)
    (folder / "words.yaml").write_text(WORDS.format(data["truthfulqa_mc1_file"]))
    calls = [
        ["run", "--model", "hf", "--model_args", f"pretrained={model},peft={place / 'adapter'},dtype=float32", "--tasks",
         ",".join([*data, "words_file"]), "--include_path", str(folder), "--limit", str(LIMIT), "--batch_size", "1", "--device", "cpu",
         "--output_path", str(place / name), "--log_samples"]
        for name, model in (("fp32", tiny_folder), ("nf4", place / "nf4-model"))
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", LM_EVAL, json.dumps(calls)],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return place


@pytest.mark.parametrize("precision", ["fp32", "nf4"])
def test_numbers_are_those_of_lm_eval_by_itself_to_the_last_digit(
    precision: str, by_itself: Path, data: dict[str, Path]
) -> None:
    theirs = by_itself / precision
    table = json.loads(next(theirs.rglob("results_*.json")).read_text())["results"]
    backbone = load(by_itself / "model", precision=precision)
    backbone.add_role("bench", start=by_itself / "adapter")
    before = backbone.frozen_digest()
    specs = find([str(EXAMPLES)], data)
    with plain(backbone):
        model = language_model(backbone, batch_size=1)
        backbone.activate("bench")
        for spec in specs:
            found = measure(model, load_task(spec), Settings(limit=LIMIT, batch_size=1))[spec.name]
            row = table[spec.name]
            assert {m.name: (m.value, m.stderr) for m in found} == {
                key.removesuffix(",none"): (value, row[key.replace(",", "_stderr,")])
                for key, value in row.items()
                if key in ("acc,none", "acc_norm,none")
            }
            lines = next(theirs.rglob(f"samples_{spec.name}_*.jsonl")).read_text().splitlines()
            for metric in found:
                samples = {f"{spec.name}/{s['doc_id']}": s[metric.name] for s in map(json.loads, lines)}
                assert metric.by_question == samples and metric.n == LIMIT
    assert backbone.frozen_digest() == before


def test_log_likelihoods_are_equal_to_the_last_bit_in_plain_and_prefloops_own_forward_is_back_afterwards(
    by_itself: Path,
) -> None:
    from lm_eval.api.instance import Instance

    backbone = load(by_itself / "model", precision="nf4")
    backbone.add_role("bench", start=by_itself / "adapter")
    backbone.activate("bench")
    ids = torch.arange(20, 60)[None]
    with torch.no_grad():
        own = backbone.model(ids).logits
    line = next((by_itself / "nf4").rglob("samples_hellaswag_file_*.jsonl")).read_text().splitlines()[0]
    sample = json.loads(line)
    asked = [(v["arg_0"], v["arg_1"]) for v in sample["arguments"].values()]
    with plain(backbone):
        model = language_model(backbone, batch_size=1)
        backbone.activate("bench")
        got = model.loglikelihood([Instance("loglikelihood", {}, pair, k) for k, pair in enumerate(asked)])
    assert [value for value, _ in got] == [float(response[0]) for response in sample["filtered_resps"]]
    backbone.activate("bench")
    with torch.no_grad():
        assert torch.equal(backbone.model(ids).logits, own)


def test_generated_answers_are_those_of_lm_eval_by_itself_although_the_rollout_engine_is_neutral(
    by_itself: Path,
) -> None:
    from lm_eval.api.instance import Instance

    backbone = load(by_itself / "model")
    backbone.add_role("bench", start=by_itself / "adapter")
    start("transformers", backbone, GenerationConfig())  # takes the model's own repetition penalty away
    lines = next((by_itself / "fp32").rglob("samples_words_file_*.jsonl")).read_text().splitlines()
    theirs = [json.loads(line) for line in lines]
    options = {"until": ["the end"], "max_gen_toks": 12, "do_sample": False}
    with plain(backbone):
        model = language_model(backbone, batch_size=1)
        backbone.activate("bench")
        asked = [(s["arguments"]["gen_args_0"]["arg_0"], options) for s in theirs]
        got = model.generate_until([Instance("generate_until", {}, pair, k) for k, pair in enumerate(asked)])
    assert got == [s["resps"][0][0] for s in theirs] and all(got)
    assert backbone.causal_lm.generation_config.repetition_penalty != 1.5


def test_example_hellaswag_asks_what_lm_evals_own_task_asks(data: dict[str, Path]) -> None:
    import datasets
    from lm_eval.tasks.hellaswag.utils import process_docs

    rows = [json.loads(line) for line in data["hellaswag_file"].read_text().splitlines()]
    theirs = process_docs(datasets.Dataset.from_list(rows))
    spec = next(s for s in find([str(EXAMPLES)], data) if s.name == "hellaswag_file")
    task = load_task(spec)["tasks"]["hellaswag_file"]
    with sandboxed():
        for ours, wanted in zip(task.eval_docs, theirs, strict=True):
            assert task.doc_to_text(ours) == wanted["query"] and task.doc_to_choice(ours) == wanted["choices"]
            assert int(task.doc_to_target(ours)) == wanted["gold"]


def test_bench_compares_every_adapter_with_the_base_and_pairs_by_question(made: Path, data: dict[str, Path]) -> None:
    found = bench(made, find([str(EXAMPLES)], data), settings=Settings(limit=8))
    written = json.loads((made / "bench.json").read_text())
    assert written == found and list(found["adapters"]) == ["base", "sft", "ppo"]
    assert set(found["tasks"]) == {"hellaswag_file", "truthfulqa_mc1_file"}
    swag = found["tasks"]["hellaswag_file"]
    assert (
        swag["metric"] == "acc_norm"
        and swag["higher_is_better"] is True
        and [m["metric"] for m in swag["more"]] == ["acc"]
    )
    assert set(swag["adapters"]) == {"base", "sft", "ppo"} and set(swag["difference"]) == {"sft", "ppo"}
    assert all(a["n"] == 8 and 0 <= a["value"] <= 1 and a["stderr"] is not None for a in swag["adapters"].values())
    ppo = swag["difference"]["ppo"]
    assert ppo["value"] == swag["adapters"]["ppo"]["value"] - swag["adapters"]["base"]["value"]
    kept = [json.loads(path.read_text()) for path in (made / "bench").glob("*.json")]
    parts = {
        row["adapter"].rpartition(":")[2]: row["measured"]["hellaswag_file"]
        for row in kept
        if row["name"] == "hellaswag_file"
    }
    scores = {slot: next(m for m in ms if m["name"] == "acc_norm")["by_question"] for slot, ms in parts.items()}
    gaps = [scores["ppo"][q] - scores["base"][q] for q in scores["base"]]
    assert ppo["stderr"] == pytest.approx(statistics.stdev(gaps) / 8**0.5)
    assert found["settings"]["reference"] == "base" and found["settings"]["apply_chat_template"] is False
    assert found["environment"]["versions"]["torch"]


def test_a_killed_bench_goes_on_after_its_last_task_and_a_repeated_one_loads_nothing(
    tmp_path: Path, tiny_folder: Path, data: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path, "t", tiny_folder, slots=("sft",))
    specs = find([str(EXAMPLES)], data)
    calls: list[str] = []
    real = bench_run.harness.measure

    def counted(model: Any, loaded: Any, settings: Settings) -> Any:
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(next(iter(loaded["tasks"])))
        return real(model, loaded, settings)

    monkeypatch.setattr(bench_run.harness, "measure", counted)
    with pytest.raises(KeyboardInterrupt):
        bench(run, specs, settings=Settings(limit=2))
    assert calls == ["hellaswag_file", "truthfulqa_mc1_file", "hellaswag_file"]
    calls.clear()
    first = bench(run, specs, settings=Settings(limit=2))
    assert calls == ["truthfulqa_mc1_file"]
    monkeypatch.setattr(bench_run, "_measure", lambda *_: pytest.fail("measured again"))
    assert bench(run, specs, settings=Settings(limit=2)) == first
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        bench(run, specs, settings=Settings(limit=3))
    rows = data["hellaswag_file"].read_text().splitlines(keepends=True)
    (tmp_path / "other.jsonl").write_text("".join(rows[::-1]))
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        bench(
            run, find([str(EXAMPLES)], data | {"hellaswag_file": tmp_path / "other.jsonl"}), settings=Settings(limit=2)
        )


def test_a_chat_template_changes_the_questions_and_is_recorded(made: Path, data: dict[str, Path]) -> None:
    specs = find([str(EXAMPLES / "truthfulqa_mc1.yaml")], {"truthfulqa_mc1_file": data["truthfulqa_mc1_file"]})
    bench(made, specs, ["sft"], Settings(limit=4), output=made / "plain.json")
    before = {path.name for path in (made / "bench").iterdir()}
    chat = bench(made, specs, ["sft"], Settings(limit=4, apply_chat_template=True), output=made / "chat.json")
    assert len({path.name for path in (made / "bench").iterdir()} - before) == 1  # not taken from the plain one
    assert chat["settings"]["apply_chat_template"] is True
    assert chat["tasks"]["truthfulqa_mc1_file"]["difference"] == {}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("process_docs: !function utils.steal", "!function utils.steal"),
        ("class: !function task.Task", "!function task.Task"),
        ("metric_list: [{metric: super/metric, hf_evaluate: true}]", "super/metric"),
        ("metric_list: [{metric: somebody/metric}]", "somebody/metric"),
        ("dataset_kwargs: {trust_remote_code: true}", "dataset_kwargs.trust_remote_code"),
        ("use_prompt: prompts.yaml:x", "use_prompt"),
    ],
)
def test_a_local_task_that_would_run_code_is_refused_with_what_it_holds(
    tmp_path: Path, change: str, named: str
) -> None:
    (tmp_path / "utils.py").write_text("open('ran', 'w')\ndef steal(d): return d\n")
    base = "task: bad\ndataset_path: json\n"
    (tmp_path / "bad.yaml").write_text(base + change + "\n")
    with pytest.raises(ConfigError, match="would run code") as error:
        find([str(tmp_path / "bad.yaml")])
    assert named in str(error.value) and "--trust-task-code" in str(error.value)
    (tmp_path / "outer.yaml").write_text("task: outer\ninclude: bad.yaml\n")
    with pytest.raises(ConfigError, match="would run code"):
        find([str(tmp_path / "outer.yaml")])


def test_a_trusted_task_runs_its_code(tmp_path: Path, data: dict[str, Path]) -> None:
    (tmp_path / "own_utils.py").write_text("def shout(doc): return doc['question'].upper()\n")
    text = (
        (EXAMPLES / "truthfulqa_mc1.yaml")
        .read_text()
        .replace("../shared/data/truthfulqa.jsonl.gz", str(data["truthfulqa_mc1_file"]))
    )
    (tmp_path / "own.yaml").write_text(
        text.replace('doc_to_text: "Q: {{ question }}\\nA:"', "doc_to_text: !function own_utils.shout")
    )
    spec = find([str(tmp_path / "own.yaml")], trust_code=True)[0]
    task = load_task(spec)["tasks"]["truthfulqa_mc1_file"]
    assert task.doc_to_text(task.eval_docs[0]) == "WHAT IS THE TOWN NUMBER 0?"


def test_a_template_that_reaches_for_code_is_stopped_while_the_task_is_built(
    tmp_path: Path, data: dict[str, Path]
) -> None:
    ran = tmp_path / "ran"
    text = (EXAMPLES / "truthfulqa_mc1.yaml").read_text()
    (tmp_path / "sly.yaml").write_text(
        text.replace("Q: {{ question }}", f"{{{{ cycler.__init__.__globals__.os.system('touch {ran}') }}}}")
    )
    [spec] = find([str(tmp_path / "sly.yaml")], {"truthfulqa_mc1_file": data["truthfulqa_mc1_file"]})
    with pytest.raises(ConfigError, match="task 'truthfulqa_mc1_file': its template reaches for code"):
        load_task(spec)
    assert not ran.exists()


def test_a_template_that_reaches_for_code_at_a_later_row_is_stopped_too(
    tmp_path: Path, data: dict[str, Path], made: Path
) -> None:
    from jinja2.exceptions import SecurityError

    text = (EXAMPLES / "truthfulqa_mc1.yaml").read_text()
    later = "{% if '0?' not in question %}{{ question.__class__.__mro__ }}{% endif %}"
    (tmp_path / "sly.yaml").write_text(text.replace("Q: {{ question }}", later))
    specs = find([str(tmp_path / "sly.yaml")], {"truthfulqa_mc1_file": data["truthfulqa_mc1_file"]})
    with pytest.raises(SecurityError):
        bench(made, specs, ["sft"], Settings(limit=2), output=tmp_path / "b.json")


def test_what_cannot_be_run_is_refused_early_with_what_to_do(tmp_path: Path, made: Path, data: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match="nothing to run"):
        bench(made, [])
    with pytest.raises(DataError, match=r"--data hellaswag_file=FILE"):
        find([str(EXAMPLES / "hellaswag.yaml")], {"hellaswag_file": tmp_path / "gone.jsonl"})
    with pytest.raises(ConfigError, match="none of the local tasks"):
        find(["arc_easy"], data)
    with pytest.raises(ConfigError, match="does not exist"):
        find([str(tmp_path / "no.yaml")])
    with pytest.raises(ConfigError, match="two tasks are called"):
        find([str(EXAMPLES), str(EXAMPLES / "hellaswag.yaml")], data)
    (tmp_path / "group.yaml").write_text("group: several\ntask: [a, b]\n")
    with pytest.raises(ConfigError, match="key 'group'"):
        find([str(tmp_path / "group.yaml")])
    with pytest.raises(ModelError, match="dpo"):
        bench(made, find([str(EXAMPLES)], data), ["dpo"])


def test_an_unknown_task_gets_the_nearest_name(monkeypatch: pytest.MonkeyPatch) -> None:
    import lm_eval.tasks

    some = lm_eval.tasks.TaskManager(
        include_path=Path(lm_eval.tasks.__file__).parent / "hellaswag", include_defaults=False
    )
    monkeypatch.setattr(tasks, "_own_tasks", lambda: some)  # all of them take ten seconds to list
    with pytest.raises(ConfigError, match="did you mean 'hellaswag'"):
        load_task(find(["hellaswagg"])[0])


def test_differences_are_paired_and_fall_back_on_resamples_or_nothing() -> None:
    before = Metric("acc", True, 0.5, 0.29, 4, {"a": 1.0, "b": 0.0, "c": 1.0, "d": 0.0})
    after = Metric("acc", True, 0.75, 0.25, 4, {"a": 1.0, "b": 0.0, "c": 1.0, "d": 1.0})
    found = compare.difference(after, before)
    assert found["value"] == 0.25 and found["stderr"] == pytest.approx(0.25)  # gaps 0, 0, 0, 1: sd 0.5 / sqrt 4
    bleu = [Metric("bleu", True, value, 0.1, 3, {}, [value, value + 0.1]) for value in (0.2, 0.3)]
    assert compare.difference(bleu[1], bleu[0])["stderr"] == pytest.approx(0.0)  # they move together
    assert compare.difference(Metric("ppl", False, 9.0, None, 3), Metric("ppl", False, 8.0, None, 3)) == {
        "value": 1.0,
        "stderr": None,
    }


def test_domain_sets_are_answered_greedily_and_scored_for_every_adapter(tmp_path: Path, made: Path) -> None:
    file = tmp_path / "town.jsonl"
    rows = [
        {"prompt": "Where is the town?", "reference": "by the river"},
        {"prompt": "What is good?", "references": ["a dog", "the fox"]},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    domain = Domain(file, max_new_tokens=6)
    found = bench(made, [], domains=[domain], output=tmp_path / "bench.json")
    town = found["tasks"]["town"]
    assert [town["metric"], *(row["metric"] for row in town["more"])] == [
        "rougeL",
        "rouge1",
        "rouge2",
        "bleu",
        "f1",
        "exact_match",
    ]
    assert all(set(row["adapters"]) == {"base", "sft", "ppo"} for row in (town, *town["more"]))
    assert bench(made, [], domains=[domain], output=tmp_path / "bench.json") == found


def test_as_a_stage_it_measures_each_adapter_once_and_a_new_policy_alone(
    tmp_path: Path, tiny_folder: Path, data: dict[str, Path]
) -> None:
    config = BenchConfig(tasks=[str(EXAMPLES)], data=[f"{task}={path}" for task, path in data.items()], limit=2)
    backbone = BackboneConfig(
        model=str(tiny_folder), precision="fp32", max_length=256, adapter=AdapterConfig(r=4, alpha=8)
    )

    def run(*more: Made, config: BenchConfig = config) -> dict[str, str]:
        runtime = Runtime(backbone, rollout="transformers", output=tmp_path)
        stages = [Made("sft", 1), *more, Bench(config)]
        summary = Pipeline(stages, runtime).run(tmp_path / "t")
        return {stage["name"]: stage["status"] for stage in summary["stages"]}

    ppo, dpo = Made("ppo", 2, ("sft",)), Made("dpo", 3, ("sft",))
    assert set(run(ppo).values()) == {"ran"}
    written = json.loads((tmp_path / "t" / "bench.json").read_text())
    assert list(written["adapters"]) == ["base", "sft", "ppo"] and set(written["tasks"]) == set(data)
    by_command = bench(
        tmp_path / "t", find([str(EXAMPLES)], data), settings=Settings(limit=2), output=tmp_path / "b.json"
    )
    assert by_command["tasks"] == written["tasks"]
    assert set(run(ppo).values()) == {"reused"}
    # What prefloop bench wrote stays while it is about every adapter of the run, and no longer.
    table = tmp_path / "t" / "bench.json"
    assert table.is_symlink()
    bench(tmp_path / "t", find([str(EXAMPLES)], data), settings=Settings(limit=3))
    sealed = json.loads((tmp_path / "t" / "artifacts" / "bench" / "bench.json").read_text())
    assert not table.is_symlink() and sealed == written
    run(ppo)
    assert json.loads(table.read_text())["settings"]["limit"] == 3
    ran = {name for name, status in run(ppo, dpo).items() if status == "ran"}
    assert ran == {"dpo", "bench-dpo", "bench"}
    assert table.is_symlink() and "dpo" in json.loads(table.read_text())["adapters"]
    changed = run(ppo, dpo, config=dataclasses.replace(config, limit=1))
    assert {name for name, status in changed.items() if status == "ran"} == {
        f"bench-{s}" for s in ("base", "sft", "ppo", "dpo")
    } | {"bench"}


def test_bench_settings_leave_the_key_of_every_other_stage_alone(tmp_path: Path) -> None:
    from pipelines.rlhf import compose

    plain_config = RLHFConfig(
        data=DataConfig(demonstrations=tmp_path / "d", prompts=tmp_path / "p", eval_prompts=tmp_path / "e")
    )
    with_bench = dataclasses.replace(plain_config, bench=BenchConfig(tasks=["hellaswag"]))
    before, after = compose(plain_config), compose(with_bench)
    assert [type(stage) for stage in after] == [*(type(stage) for stage in before), Bench]
    assert before[-1].config == after[-2].config  # type: ignore[attr-defined]
