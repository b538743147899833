"""Conversations in a report: evaluation prompts with every policy's answers, and answers while a
policy learns.
"""

from pathlib import Path

import pytest
import report_extras
import report_fixture
from report_page import HOSTILE, Page, full_fixture, part, report  # noqa: F401
from turns import WEATHER, asked, call, looked

from prefloop.artifacts.codec import read
from prefloop.records import Conversation, Message, Prompt, Response, to_dict
from prefloop.report import conversations
from prefloop.report.html import write_report
from prefloop.report.summary import Summary


def test_conversations_hold_every_evaluation_prompt_with_both_scores(full: Page) -> None:
    source = part(full, "conversations")
    assert source.count('<article class="talk">') == report_extras.PROMPTS
    assert (
        f"{report_extras.PROMPTS} prompts, with the first of 2 responses of every policy." in source
    )
    assert (
        f"{report_extras.PROMPTS - conversations.OPEN} more prompts" in source
    )  # closed, but there without a script
    assert (
        'data-policy="ppo" data-gold="0.448" data-reward=' in source
        and source.count("cut at the token limit") == 3 * 6
    )


def test_responses_of_another_run_behind_a_link_are_not_shown(tmp_path: Path) -> None:
    data = report_fixture.summary()
    report_extras.write_responses(tmp_path, data)
    for stage in data["stages"]:
        stage["key"] = stage["key"].replace("key-ppo", "newer")
    shown = report(tmp_path, data, [])
    assert "sft-0" in shown.text and "ppo-0" not in shown.text


def test_few_samples_of_the_summary_stand_in_for_artifacts_that_are_gone(tmp_path: Path) -> None:
    shown = report(tmp_path, rows=[])
    assert (
        len(shown.all("article")) == 3
        and "3 prompts." in shown.text
        and "more prompts" not in shown.text
    )


def test_prompts_and_characters_beyond_the_limit_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversations, "MOST_PROMPTS", 12)
    data = report_fixture.summary()
    report_extras.write_responses(tmp_path, data, ppo="x" * 5000)
    shown = report(tmp_path, data, [])
    assert (
        shown.source.count('<article class="talk">') == 12
        and "The first 12 of 30 evaluation prompts" in shown.text
    )
    assert shown.source.count("x" * 4000) == 12 and "x" * 4001 not in shown.source
    assert "1,000 more characters are in" in shown.text


def test_a_row_of_another_version_ends_its_file_and_is_told(tmp_path: Path) -> None:
    data = report_fixture.summary()
    report_extras.write_responses(tmp_path, data)
    with (tmp_path / "artifacts/respond-sft/responses.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"id": "odd", "prompt": 7, "responses": "none"}\n')
    report_extras.seal(tmp_path / "artifacts/respond-sft", "respond-sft", "key-sft")
    text = report(tmp_path, data, []).text
    assert "30 prompts" in text
    assert "respond-sft/responses.jsonl: another version of prefloop wrote it" in text


@pytest.mark.parametrize("damage", ["responses.jsonl", "manifest.json"])
def test_a_damaged_artifact_is_told_and_nothing_of_it_shown(damage: str, tmp_path: Path) -> None:
    data = report_fixture.summary()
    report_extras.write_responses(tmp_path, data)
    path = tmp_path / "artifacts" / "respond-sft" / damage
    path.write_bytes(path.read_bytes().replace(b"sft", b"sfu", 1))
    shown = report(tmp_path, data, [])
    assert (
        "The artifact respond-sft is damaged" in shown.text
        and "sft-0" not in shown.text
        and "ppo-0" in shown.text
    )


def test_responses_while_the_policy_learns_stand_by_prompt_with_step_reward_and_kl(
    full: Page,
) -> None:
    source = part(full, "grown-1")
    assert full.headings.index("Responses while PPO learns") > full.headings.index("Conversations")
    assert (
        "Prompt a?" in source
        and "<span>step 11</span><small>reward 1.10</small><small>KL 3.3</small>" in source
    )
    assert source.count("answer a at") == 6


def test_prompts_that_training_saw_once_stand_by_step(tmp_path: Path) -> None:
    data = report_fixture.summary()
    rows = [
        {
            "step": step,
            "id": f"p{step}",
            "prompt": [{"role": "user", "content": f"Prompt {step}?"}],
            "response": "yes",
        }
        for step in range(1, 31)
    ]
    report_extras.write_artifact(tmp_path, "ppo", data["stages"][5]["key"], "samples.jsonl", rows)
    [(stage, groups)] = conversations.over_training(tmp_path, read(Summary, data), [])
    assert (
        stage == "ppo"
        and [group.title for group in groups][:2] == ["Step 1", "Step 5"]
        and groups[-1].title == "Step 30"
    )
    assert groups[0].steps[0].prompt == "Prompt 1?"


def test_the_page_of_a_thousand_prompts_stays_small_and_is_one_file(tmp_path: Path) -> None:
    data = report_fixture.summary()
    report_extras.write_responses(tmp_path, data, prompts=1000)
    page = write_report(report_fixture.write_run(tmp_path, data, []))
    assert (
        page.stat().st_size < 3_000_000
        and page.read_text(encoding="utf-8").count("<article") == 1000
    )


def write_turns(folder: Path, hostile: str = "") -> dict:
    """A run whose prompts have tools, a system turn, thoughts and results, as one policy's answers
    have.
    """
    data = report_fixture.summary()
    report_extras.write_responses(folder, data, prompts=1)
    prompt = Conversation(
        [*asked(), Message("user", f"And in Thun? {hostile}")], [WEATHER | {"note": hostile}]
    )
    answers = {
        "sft": Response("No idea."),
        "ppo": looked(said=f"Yes, warm. {hostile}"),
        "dpo": Response.of([Message("assistant", "", "Hm.", [call("Thun")])]),
    }
    for policy, answer in answers.items():
        said = {key: value for key, value in to_dict(answer).items() if key in ("text", "turns")}
        row = {
            **to_dict(Prompt("q0", prompt)),
            "responses": [{**said, "finished": True, "reward": 1.0, "kl": 0.1}],
        }
        report_extras.write_artifact(
            folder, f"respond-{policy}", f"key-{policy}", "responses.jsonl", [row]
        )
    return data


def test_tools_thoughts_calls_and_results_stand_under_their_headings(tmp_path: Path) -> None:
    shown = report(tmp_path, write_turns(tmp_path), [])
    [talk] = conversations.section(tmp_path, read(Summary, write_turns(tmp_path)), []).shown  # type: ignore[union-attr]
    assert [who for who, _ in talk.turns] == [
        "tools",
        "system",
        "user",
        "assistant thinks",
        "assistant calls",
        "tool get_weather",
        "user",
    ]
    assert talk.asked == 6
    said = {answer.policy: [who for who, _ in answer.said] for answer in talk.answers}
    assert said == {
        "sft": [],
        "ppo": ["assistant thinks", "assistant calls", "tool get_weather", "assistant"],
        "dpo": ["assistant thinks", "assistant calls"],
    }
    for text in (
        "Be brief.",
        "Weather <now> & here",
        "I should look.",
        'get_weather({"city": "Thun"})',
        "Better ask again.",
    ):
        assert text in shown.text
    assert (
        shown.source.count("And in Thun?") == 1
        and '<p class="turn last" dir="auto"><b>user</b> And in Thun?' in shown.source
    )


def test_markup_in_turns_tools_and_names_is_text(tmp_path: Path) -> None:
    data = write_turns(tmp_path, HOSTILE)
    shown = report(tmp_path, data, [])
    assert (
        "<script>alert" not in shown.source
        and "<img src=x" not in shown.source
        and shown.text.count("alert('x')") == 2
    )


def test_a_long_answer_with_turns_is_cut_once_and_counted(tmp_path: Path) -> None:
    parts, cut = conversations._said(looked(said="x" * 5000).turns)
    assert (
        sum(len(text) for _, text in parts) == conversations.MOST_CHARACTERS and 1000 < cut < 1100
    )
    assert conversations._said([]) == ([], 0)


def test_prompts_of_training_show_what_was_asked_and_what_stood_before(tmp_path: Path) -> None:
    data = report_fixture.summary()
    row = {
        key: value
        for key, value in to_dict(Prompt("p", asked())).items()
        if key in ("prompt", "tools")
    }
    rows = [{"step": step, "id": "p", **row, "response": f"yes {step}"} for step in (1, 2)]
    report_extras.write_artifact(tmp_path, "ppo", data["stages"][5]["key"], "samples.jsonl", rows)
    [(_, [group])] = conversations.over_training(tmp_path, read(Summary, data), [])
    assert group.title == "Is it warm in Bern?" and group.turns[group.asked].text == group.title
    assert len(group.turns) == 6 and "tool get_weather" in report(tmp_path, data, []).text
