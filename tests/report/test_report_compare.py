"""``prefloop report RUN RUN``: runs side by side, only the settings that differ, curves over one
another.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import report_extras
import report_fixture
from report_fixture import estimate
from report_page import HOSTILE, Page, cells, part

from prefloop.cli import _main
from prefloop.errors import ConfigError, DataError
from prefloop.report.compare import write_comparison


def run(
    folder: Path, rate: float = 0.781, rows: list[dict[str, Any]] | None = None, **changes: Any
) -> Path:
    """A run whose PPO wins at ``rate`` with an interval of 5 points to each side; without curves
    unless it is given some.
    """
    data = report_extras.judged() | changes
    data["results"]["ppo"]["wins"]["gold"] = estimate(rate, rate - 0.05, rate + 0.05)
    return report_fixture.write_run(folder, data, rows or [])


def compared(*folders: Path) -> Page:
    return Page(write_comparison(folders).read_text(encoding="utf-8"))


def test_one_run_gives_its_report_and_two_give_a_comparison_beside_the_first(
    tmp_path: Path, capsys: Any
) -> None:
    a, b = run(tmp_path / "one" / "a"), run(tmp_path / "two" / "b")
    _main(["report", str(a)])
    _main(["report", str(a), str(b)])
    _main(["report", str(a), str(b), "--output", str(tmp_path / "elsewhere.html")])
    printed = [Path(line) for line in capsys.readouterr().out.replace("\n", "").split(".html")[:-1]]
    assert [path.name for path in printed] == ["report", "compare", "elsewhere"]
    assert (a / "report.html").is_file() and (tmp_path / "one" / "compare.html").is_file()
    assert (tmp_path / "elsewhere.html").read_bytes() == (
        tmp_path / "one" / "compare.html"
    ).read_bytes()


def test_the_headline_names_the_best_and_says_whether_its_lead_is_settled(tmp_path: Path) -> None:
    best, close, far = (
        run(tmp_path / name, rate)
        for name, rate in (("best", 0.80), ("close", 0.76), ("far", 0.93))
    )
    assert (
        compared(best, close).headings[0]
        == "PPO of best wins most against its SFT under the gold scorer: 80.0 % [75.0, 85.0],"
        " before PPO of close with 76.0 % [71.0, 81.0]; the intervals overlap, so the order is"
        " not settled."
    )
    assert (
        compared(far, close)
        .headings[0]
        .endswith("PPO of close with 76.0 % [71.0, 81.0]; the intervals do not overlap.")
    )


def test_every_policy_of_every_run_stands_in_the_table_and_in_the_plots(tmp_path: Path) -> None:
    page = compared(
        *(
            run(tmp_path / name, rate, report_fixture.events())
            for name, rate in (("a", 0.80), ("b", 0.60))
        )
    )
    rows = [
        [" ".join(cell.split()) for cell in row]
        for row in cells(part(page, "results").split("</table>")[0])
    ]
    assert [row[0] for row in rows[1:]] == ["a SFT", "a PPO", "a DPO", "b SFT", "b PPO", "b DPO"]
    assert rows[5][3:5] == ["60.0", "[55.0, 65.0]"]
    for plot in re.findall(r"<svg.*?</svg>", part(page, "curves-1"), re.DOTALL):
        assert ">a</text>" in plot and ">b</text>" in plot  # a legend


def test_only_settings_that_differ_are_listed(tmp_path: Path) -> None:
    shared = {
        "run": "a",
        "seed": 0,
        "ppo": {"kl": {"coef": 0.02}, "steps": 60},
        "label": {"annotators": [{"name": "x"}]},
    }
    other = {
        "run": "b",
        "seed": 0,
        "ppo": {"kl": {"coef": 0.1}, "steps": 60},
        "label": {"annotators": [{"name": "x"}]},
    }
    folders = run(tmp_path / "a", config=shared), run(tmp_path / "b", config=other)
    assert cells(part(compared(*folders), "settings")) == [
        ["Setting", "a", "b"],
        ["ppo.kl.coef", "0.02", "0.1"],
    ]
    same = compared(folders[0], run(tmp_path / "c", config=shared | {"run": "c"}))
    assert "None: the runs were told the same." in same.text


def test_runs_of_older_versions_are_compared_by_what_their_artifacts_were_made_from(
    tmp_path: Path,
) -> None:
    folders = []
    for name, samples in (("a", 2), ("b", 4)):
        data = report_fixture.summary()
        report_extras.write_responses(tmp_path / name, data)
        manifest = tmp_path / name / "artifacts" / "respond-sft" / "manifest.json"
        identity = {"stage": "respond-sft", "code": name, "seed": 0, "config": {"samples": samples}}
        manifest.write_text(
            json.dumps({"stage": "respond-sft", "key": "key-sft", "identity": identity}),
            encoding="utf-8",
        )
        if name == "b":
            data["results"].pop("dpo")
            data["stages"] = [stage for stage in data["stages"] if stage["name"] != "respond-dpo"]
        folders.append(report_fixture.write_run(tmp_path / name, data, []))
    assert cells(part(compared(*folders), "settings"))[1:] == [
        ["stages.respond-dpo", "yes", "–"],
        ["respond-sft.config.samples", "2", "4"],
    ]


def test_folders_of_one_name_are_told_apart_by_their_path_and_one_run_is_no_comparison(
    tmp_path: Path,
) -> None:
    a, b = run(tmp_path / "one" / "demo"), run(tmp_path / "two" / "demo", 0.6)
    assert "one/demo" in compared(a, b).text and "two/demo" in compared(a, b).text
    with pytest.raises(ConfigError, match="a comparison needs two runs"):
        write_comparison([a, a])
    with pytest.raises(SystemExit, match="2"):
        _main(["report"])
    with pytest.raises(DataError, match="nothing' is not the folder of a run"):
        write_comparison([a, tmp_path / "nothing"])


def test_what_makes_runs_hard_to_compare_is_said(tmp_path: Path) -> None:
    data = report_fixture.summary()
    data["stages"][0]["key"], data["model"] = "f" * 64, "other/model"
    for result in data["results"].values():
        result["n_prompts"] = 40
    page = compared(run(tmp_path / "a"), report_fixture.write_run(tmp_path / "b", data, []))
    assert (
        page.text.count("Caution.") == 3
        and "different SFT adapters" in page.text
        and "other/model" in page.text
    )
    assert "Caution." not in compared(run(tmp_path / "c"), run(tmp_path / "d")).text


def test_benchmarks_reward_tests_and_times_stand_beside_each_other(tmp_path: Path) -> None:
    a, b = run(tmp_path / "a"), run(tmp_path / "b")
    (a / "bench.json").write_text(json.dumps(report_extras.bench()), encoding="utf-8")
    (b / "reward-eval.json").write_text(json.dumps(report_extras.reward_eval()), encoding="utf-8")
    page = compared(a, b)
    assert ["hellaswag", "acc_norm", "PPO", "500", "0.3821", "± 0.0217", "–", ""] in cells(
        part(page, "benchmarks")
    )
    assert ["helpful_test", "–", "", "68.8", "[64.7, 72.7]"] in cells(part(page, "reward-model"))
    assert ["SFT", "1\xa0min\xa012\xa0s", "reused", "1\xa0min\xa012\xa0s", "reused"] in cells(
        part(page, "times")
    )


def test_benchmarks_of_older_adapters_are_left_out_by_name_of_the_run(tmp_path: Path) -> None:
    a, b = run(tmp_path / "a"), run(tmp_path / "b")
    for folder, key in (
        (a, "older"),
        (b, json.loads((b / "summary.json").read_text())["stages"][0]["key"]),
    ):
        measured = report_extras.bench() | {"adapters": {"base": "any", "sft": key}}
        (folder / "bench.json").write_text(json.dumps(measured), encoding="utf-8")
    page = compared(a, b)
    assert "a: bench.json was measured on another SFT than this run's" in page.text
    assert "b: bench.json" not in page.text and [
        "hellaswag",
        "acc_norm",
        "SFT",
        "500",
        "–",
        "",
        "0.4352",
        "± 0.0222",
    ] in cells(part(page, "benchmarks"))


def test_win_rates_of_different_judges_are_not_ranked(tmp_path: Path) -> None:
    folders = []
    for name in ("a", "b"):
        data = report_extras.judged()
        for result in data["results"].values():
            result["wins"] = {k: win for k, win in result["wins"].items() if k == "judge"}
            if result.get("judge"):
                result["judge"] = f"judge-{name}"
        folders.append(report_fixture.write_run(tmp_path / name, data, []))
    page = compared(*folders)
    assert "No judge compared policies in all of them" in page.text
    assert (
        "judged by different judges: judge-a, judge-b" in page.text
        and "%, judge judge-a, judge-b" in page.text
    )


def test_text_of_runs_stays_text(tmp_path: Path) -> None:
    data = report_extras.judged() | {"model": HOSTILE, "config": {"ppo": {HOSTILE: HOSTILE}}}
    data["stages"].append({"name": HOSTILE})
    rows = [{"stage": HOSTILE, "event": "step", "step": i, "loss": 1.0 / i} for i in (1, 2)]
    hostile = report_fixture.write_run(tmp_path / '"><script>x', data, rows)
    page = compared(hostile, run(tmp_path / "calm"))
    assert page.all("script") == [{}] and not page.all("img") and page.text.count(HOSTILE) >= 3
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
