"""The numbers of lm-eval on a run's adapters are those of lm_eval by itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from bench_tasks import EXAMPLES, data_fixture  # noqa: F401
from tiny import add_random_role, load, tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from prefloop.config import GenerationConfig
from prefloop.evaluation.benchmarks.harness import HarnessSettings, language_model, measure
from prefloop.evaluation.benchmarks.tasks import find, sandboxed
from prefloop.evaluation.benchmarks.tasks import load as load_task
from prefloop.models.unfused import plain
from prefloop.rollouts.start import start

pytestmark = pytest.mark.slow

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
# lm_eval as its console script starts it, several times in one process: its imports and its index
# of tasks take most of a run.
LM_EVAL = """
import json, sys
import lm_eval.tasks.manager as manager
from lm_eval.__main__ import cli_evaluate
index, manager.TaskIndex.build = manager.TaskIndex.build, staticmethod(lambda paths, **_: index(paths[1:]))  # only --include_path
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["lm_eval", *arguments]
    cli_evaluate()
"""  # noqa: E501


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
    """lm_eval on one ``adapter`` over the fp32 and nf4 weights of ``model``: its output in ``fp32``
    and ``nf4``.
    """
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
        [
            "run",
            "--model",
            "hf",
            "--model_args",
            f"pretrained={model},peft={place / 'adapter'},dtype=float32",
            "--tasks",
            ",".join([*data, "words_file"]),
            "--include_path",
            str(folder),
            "--limit",
            str(LIMIT),
            "--batch_size",
            "1",
            "--device",
            "cpu",
            "--output_path",
            str(place / name),
            "--log_samples",
        ]
        for name, model in (("fp32", tiny_folder), ("nf4", place / "nf4-model"))
    ]
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
            found = measure(model, load_task(spec), HarnessSettings(limit=LIMIT, batch_size=1))[
                spec.name
            ]
            row = table[spec.name]
            assert {m.name: (m.value, m.stderr) for m in found} == {
                key.removesuffix(",none"): (value, row[key.replace(",", "_stderr,")])
                for key, value in row.items()
                if key in ("acc,none", "acc_norm,none")
            }
            lines = next(theirs.rglob(f"samples_{spec.name}_*.jsonl")).read_text().splitlines()
            for metric in found:
                samples = {
                    f"{spec.name}/{s['doc_id']}": s[metric.name] for s in map(json.loads, lines)
                }
                assert metric.by_question == samples and metric.n == LIMIT
    assert backbone.frozen_digest() == before


def test_log_likelihoods_are_equal_to_the_last_bit_in_plain_and_prefloops_own_forward_is_back_afterwards(  # noqa: E501
    by_itself: Path,
) -> None:
    from lm_eval.api.instance import Instance

    backbone = load(by_itself / "model", precision="nf4")
    backbone.add_role("bench", start=by_itself / "adapter")
    backbone.activate("bench")
    ids = torch.arange(20, 60)[None]
    with torch.no_grad():
        own = backbone.model(ids).logits
    line = (
        next((by_itself / "nf4").rglob("samples_hellaswag_file_*.jsonl"))
        .read_text()
        .splitlines()[0]
    )
    sample = json.loads(line)
    asked = [(v["arg_0"], v["arg_1"]) for v in sample["arguments"].values()]
    with plain(backbone):
        model = language_model(backbone, batch_size=1)
        backbone.activate("bench")
        got = model.loglikelihood(
            [Instance("loglikelihood", {}, pair, k) for k, pair in enumerate(asked)]
        )
    assert [value for value, _ in got] == [
        float(response[0]) for response in sample["filtered_resps"]
    ]
    backbone.activate("bench")
    with torch.no_grad():
        assert torch.equal(backbone.model(ids).logits, own)


def test_generated_answers_are_those_of_lm_eval_by_itself_although_the_rollout_engine_is_neutral(
    by_itself: Path,
) -> None:
    from lm_eval.api.instance import Instance

    backbone = load(by_itself / "model")
    backbone.add_role("bench", start=by_itself / "adapter")
    start(
        "transformers", backbone, GenerationConfig()
    )  # takes the model's own repetition penalty away
    lines = next((by_itself / "fp32").rglob("samples_words_file_*.jsonl")).read_text().splitlines()
    theirs = [json.loads(line) for line in lines]
    options = {"until": ["the end"], "max_gen_toks": 12, "do_sample": False}
    with plain(backbone):
        model = language_model(backbone, batch_size=1)
        backbone.activate("bench")
        asked = [(s["arguments"]["gen_args_0"]["arg_0"], options) for s in theirs]
        got = model.generate_until(
            [Instance("generate_until", {}, pair, k) for k, pair in enumerate(asked)]
        )
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
            assert (
                task.doc_to_text(ours) == wanted["query"]
                and task.doc_to_choice(ours) == wanted["choices"]
            )
            assert int(task.doc_to_target(ours)) == wanted["gold"]
