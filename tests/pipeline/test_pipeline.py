"""The loop from demonstrations to the report: reuse, resume, refusal. Everything runs in processes
of its own, as a user would.
"""

from __future__ import annotations

import json
import random
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from loop_run import (
    adapter_hash,
    finish,
    kill_at_step,
    run,
    run_afresh,
    start,
    statuses,
    stop_after,
    summary,
    write_config,
)

pytestmark = pytest.mark.slow
ADAPTERS = ("sft", "reward", "ppo")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> tuple[Path, str]:
    """A complete PPO run: its config and its output."""
    evaluated = {"samples": 2, "resamples": 200}  # the bare model among it, as by default
    config = write_config(tmp_path_factory.mktemp("loop"), tiny_folder, evaluate=evaluated)
    return config, run_afresh(config)


def test_summary_holds_stages_results_and_environment(finished: tuple[Path, str]) -> None:
    found = summary(finished[0])
    assert [s["name"] for s in found["stages"]] == [
        "sft",
        "sample",
        "label",
        "reward",
        "ppo",
        "respond-base",
        "respond-sft",
        "respond-sft-again",
        "respond-ppo",
        "judge",
    ]
    assert {s["status"] for s in found["stages"]} == {"ran"}
    assert all(
        len(s["key"]) == 64 and s["seconds"] >= 0 and isinstance(s["metrics"], dict)
        for s in found["stages"]
    )
    assert list(found["results"]) == ["base", "sft", "ppo"]
    ppo = found["results"]["ppo"]
    assert 0 <= ppo["gold"]["value"] <= 1 and ppo["n_responses"] == 24
    for number in (ppo["wins"]["gold"], ppo["kl"]):
        assert number["low"] <= number["value"] <= number["high"]
    sft = found["results"]["sft"]
    assert sft["kl"]["value"] == 0 and sft["wins"]["gold"] == {"value": 0.5}
    assert found["control"]["gold"]["low"] <= 0.5 <= found["control"]["gold"]["high"]
    assert found["environment"]["versions"]["torch"] and found["environment"]["device"]


def test_the_bare_model_is_measured_as_every_policy_is(finished: tuple[Path, str]) -> None:
    folder, found = finished[0].parent / "runs" / "t", summary(finished[0])
    bare = found["results"]["base"]
    assert set(bare) == set(found["results"]["ppo"]) and bare["n_responses"] == 24
    win = bare["wins"]["gold"]
    assert bare["kl"]["value"] > 0.1 and win["low"] <= win["value"] <= win["high"]
    assert found["matrix"]["policies"] == ["base", "sft", "ppo"]
    against = found["matrix"]["rate"]
    assert against[0][1] == win["value"] and against[2][0] == pytest.approx(1 - against[0][2])
    rows = [
        json.loads(line)
        for line in (folder / "artifacts" / "respond-base" / "responses.jsonl").open()
    ]
    assert len(rows) == 12 and all(len(row["responses"]) == 2 for row in rows)
    assert re.search(r"\n +base +0\.\d{3} ", finished[1]) and "base: the bare model" in finished[1]
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert (
        "bare model, which wins <strong>" in page and "against the bare model, gold scorer" in page
    )
    assert 'data-policy="base"' in page


def test_the_report_shows_every_evaluation_prompt_with_the_gold_score_of_every_answer(
    finished: tuple[Path, str],
) -> None:
    folder = finished[0].parent / "runs" / "t"
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page.count('<article class="talk">') == 12
    graded = [
        json.loads(line)
        for line in (folder / "artifacts" / "judge" / "scores.jsonl").read_text().splitlines()
    ]
    assert [len(row["gold"]["ppo"]) for row in graded] == [2] * 12
    shown = [float(part.split('"')[0]) for part in page.split('data-policy="ppo" data-gold="')[1:]]
    assert shown == [row["gold"]["ppo"][0] for row in graded]
    assert "samples.jsonl" not in page and "Responses while PPO learns" in page


def test_every_training_stage_prints_its_audit(finished: tuple[Path, str]) -> None:
    output = finished[1]
    for stage in ("sft", "reward", "ppo"):
        for check in ("one BOS", "trainable parameters", "weights move", "backbone frozen"):
            assert f"audit {stage}: {check}" in output, (stage, check)
    assert "audit ppo: ratio policy / reference: 1.000000" in output
    assert "audit reward: save, load, same scores" in output
    assert "FAILED" not in output


def test_events_hold_a_curve_for_every_training_stage(finished: tuple[Path, str]) -> None:
    lines = (finished[0].parent / "runs" / "t" / "events.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    for stage, keys in {
        "sft": {"loss"},
        "reward": {"loss", "accuracy"},
        "ppo": {"reward_mean", "kl", "gold_mean", "seconds"},
    }.items():
        steps = [e for e in events if e["stage"] == stage and e["event"] == "step"]
        assert len(steps) >= 4 and all(keys <= set(e) for e in steps), stage


def test_same_command_again_reuses_everything_and_says_what_it_saved(
    finished: tuple[Path, str],
) -> None:
    before = adapter_hash(finished[0], "ppo")
    output = run(finished[0])
    assert set(statuses(finished[0]).values()) == {"reused"}
    assert "reused ppo" in output and "saved)" in output
    assert adapter_hash(finished[0], "ppo") == before
    assert (finished[0].parent / "runs" / "t" / "report.html").stat().st_size > 10_000


def test_changing_the_kl_coefficient_reruns_ppo_and_what_follows_alone(
    finished: tuple[Path, str],
) -> None:
    before = adapter_hash(finished[0], "ppo")
    run(finished[0], "--ppo.kl.coef", "0.5")
    ran = {name for name, status in statuses(finished[0]).items() if status == "ran"}
    assert ran == {"ppo", "respond-ppo", "judge"}
    assert adapter_hash(finished[0], "ppo") != before


def test_dpo_reuses_all_before_the_last_stage_and_joins_the_comparison(
    finished: tuple[Path, str],
) -> None:
    run(finished[0])
    output = run(finished[0], "--algo", "dpo")
    found = statuses(finished[0])
    assert {name for name, status in found.items() if status == "ran"} == {
        "dpo",
        "respond-dpo",
        "judge",
    }
    assert set(summary(finished[0])["results"]) == {"base", "sft", "ppo", "dpo"}
    assert "audit dpo: dpo loss at the reference: 0.693147" in output


@pytest.mark.parametrize("algo", ["ipo", "hinge", "orpo", "simpo"])
def test_every_other_algorithm_runs_by_its_name(finished: tuple[Path, str], algo: str) -> None:
    output = run(finished[0], "--algo", algo)
    assert algo in summary(finished[0])["results"] and f"audit {algo}: weights move" in output
    assert adapter_hash(finished[0], algo) != adapter_hash(finished[0], "sft")


def test_changing_a_prompt_file_reruns_everything_that_read_it(
    tmp_path: Path, tiny_folder: Path
) -> None:
    config = write_config(tmp_path, tiny_folder)
    run(config)
    prompts = tmp_path / "train.jsonl"
    rows = prompts.read_text().splitlines()
    prompts.write_text("\n".join([rows[0].replace("?", " today?"), *rows[1:]]) + "\n")
    run(config)
    found = statuses(config)
    assert (
        found.pop("sft") == "reused" and found.pop("respond-sft-again") == "ran"
    )  # scored by the new reward model
    assert set(found.values()) == {"ran"}


def test_five_kills_at_random_moments_end_in_the_same_adapters(
    tmp_path: Path, tiny_folder: Path, finished: tuple[Path, str]
) -> None:
    run(finished[0])
    reference = {slot: adapter_hash(finished[0], slot) for slot in ADAPTERS}
    total = len(finished[1].splitlines())
    config = write_config(tmp_path, tiny_folder)
    rng = random.Random(7)
    kills = 0
    for share in sorted(rng.uniform(0.12, 0.38) for _ in range(5)):
        alive, code, output = stop_after(config, int(share * total))
        assert not alive or code == -signal.SIGKILL, output
        kills += alive
    assert kills >= 3
    run(config)
    assert {slot: adapter_hash(config, slot) for slot in ADAPTERS} == reference
    assert "reused" in statuses(config).values()
    assert not list((tmp_path / "runs" / ".store" / "work").iterdir())


def test_kill_inside_each_training_stage_resumes_from_its_checkpoint(
    tmp_path: Path, tiny_folder: Path, finished: tuple[Path, str]
) -> None:
    run(finished[0])
    reference = {slot: adapter_hash(finished[0], slot) for slot in ADAPTERS}
    config = write_config(tmp_path, tiny_folder)
    for stage in ADAPTERS:
        kill_at_step(config, f"{stage} 3/")  # past the first checkpoint
    output = run(config)
    assert "resuming ppo" in output and statuses(config)["ppo"] == "resumed"
    assert {slot: adapter_hash(config, slot) for slot in ADAPTERS} == reference


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_says_how_to_go_on(
    tmp_path: Path, tiny_folder: Path, number: int, status: int
) -> None:
    alive, code, output = stop_after(write_config(tmp_path, tiny_folder), 8, number)
    assert (
        alive
        and code == status
        and "the same command goes on from there" in output
        and "Traceback" not in output
    )


def test_second_process_on_the_same_run_is_refused_with_the_first_ones_id(
    tmp_path: Path, tiny_folder: Path
) -> None:
    config = write_config(tmp_path, tiny_folder)
    first = start(config)
    first.stdout.readline()
    first.send_signal(signal.SIGSTOP)
    try:
        code, output = finish(start(config))
    finally:
        first.send_signal(signal.SIGCONT)
    assert code == 2 and f"process {first.pid}" in output and "--run" in output
    assert finish(first)[0] == 0


def test_votes_from_a_file_need_neither_gold_nor_candidates(
    tmp_path: Path, tiny_folder: Path
) -> None:
    pairs = tmp_path / "pairs.jsonl"
    rows = [
        {
            "chosen": f"\n\nHuman: What is {i} plus one?\n\nAssistant: It is {i + 1}.",
            "rejected": f"\n\nHuman: What is {i} plus one?\n\nAssistant: I do not know {i}.",
        }
        for i in range(12)
    ]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = dict.fromkeys(("prompts", "demonstrations", "comparisons", "eval_prompts"), str(pairs))
    config = write_config(
        tmp_path, tiny_folder, gold=None, label={"source": "file"}, data=files, algo="dpo"
    )
    run(config)
    found = summary(config)
    assert "sample" not in [s["name"] for s in found["stages"]]
    dpo = found["results"]["dpo"]
    assert "gold" not in dpo and set(dpo["wins"]) == {"reward"}
    assert found["annotators"] == [{"name": "file:pairs.jsonl", "simulated": False, "votes": 12}]


@pytest.mark.parametrize("arguments", [["--help"], ["check", "f.jsonl"]])
def test_help_and_a_check_of_a_file_need_no_torch(tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "f.jsonl").write_text('{"prompt": "Why do check marks lean?"}\n', encoding="utf-8")
    code = (
        f"import sys; sys.argv = ['prefloop', *{arguments}]\nfrom prefloop.cli import main\ntry:"
        " main()\nfinally: assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert (
        done.returncode == 0
        and ("1 prompt " if arguments[0] == "check" else "check") in done.stdout
    ), done.stderr
