"""Tasks of lm-eval: files that would run code are refused, what cannot be run is told early."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench_tasks import EXAMPLES, data_fixture, made_fixture  # noqa: F401

from prefloop.errors import ConfigError, DataError, ModelError
from prefloop.evaluation.benchmarks import tasks
from prefloop.evaluation.benchmarks.harness import HarnessSettings
from prefloop.evaluation.benchmarks.run import bench
from prefloop.evaluation.benchmarks.tasks import find
from prefloop.evaluation.benchmarks.tasks import load as load_task


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
        text.replace(
            'doc_to_text: "Q: {{ question }}\\nA:"', "doc_to_text: !function own_utils.shout"
        )
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
        text.replace(
            "Q: {{ question }}", f"{{{{ cycler.__init__.__globals__.os.system('touch {ran}') }}}}"
        )
    )
    [spec] = find(
        [str(tmp_path / "sly.yaml")], {"truthfulqa_mc1_file": data["truthfulqa_mc1_file"]}
    )
    with pytest.raises(
        ConfigError, match="task 'truthfulqa_mc1_file': its template reaches for code"
    ):
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
        bench(made, specs, ["sft"], HarnessSettings(limit=2), output=tmp_path / "b.json")


def test_what_cannot_be_run_is_refused_early_with_what_to_do(
    tmp_path: Path, made: Path, data: dict[str, Path]
) -> None:
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
