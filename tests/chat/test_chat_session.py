"""A talk with results: votes are comparisons, answers are drawn again and taken back, scores are
the reward model's.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from made_run import make_run
from talk_fixture import run_fixture, silent, talk_fixture  # noqa: F401
from turns import WEATHER

from prefloop.chat import session
from prefloop.chat.session import Talk, default_name, keep
from prefloop.cli import _main, guarded
from prefloop.data.chat import ChatFormat
from prefloop.data.sources import load_comparisons, write_jsonl
from prefloop.errors import ConfigError, DataError, ModelError
from prefloop.models.reward_model import Reward
from prefloop.records import Comparison, Conversation, Message, Response
from prefloop.runs.open import open_policies


def test_votes_on_two_answers_are_comparisons_that_check_accepts(
    run: Path, talk: Talk, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    talk.speakers = ["ppo", "sft"]
    talk.system = "Be good."
    first = talk.say("try it", silent)
    assert talk.prefer("b", "ann", "it is true").votes[0].why == "it is true"
    second = talk.say("and then", silent)
    # The talk went on with the answer that was preferred.
    assert second.sent == [
        Message("system", "Be good."),
        Message("user", "try it"),
        Message("assistant", first.answers[1].text),
        Message("user", "and then"),
    ]
    path = tmp_path / "votes.jsonl"
    assert keep(path, talk.comparisons()) == 2 and keep(path, talk.comparisons()) == 2
    found = load_comparisons(path).records
    assert [len(c.votes) for c in found] == [1, 0] and found[0].responses[1].source == "sft"
    assert found[0].prompt == first.sent and found[0].responses[0].text == first.answers[0].text
    talk.prefer("tie", "ann")
    talk.turns[0].vote = None
    again = keep(path, [c.swap() for c in talk.comparisons()])
    assert again == 2 and [[v.choice for v in c.votes] for c in load_comparisons(path).records] == [
        [1],
        ["tie"],
    ]
    assert guarded(_main, ["check", str(path)]) == 0 and "2 comparisons" in capsys.readouterr().out


def test_a_second_vote_of_the_same_person_replaces_the_first_and_others_stay(
    talk: Talk, tmp_path: Path
) -> None:
    talk.speakers = ["ppo", "sft"]
    talk.say("try it", silent)
    for choice, who in (("a", "ann"), ("b", "bob"), ("b", "ann")):
        keep(tmp_path / "votes.jsonl", [talk.prefer(choice, who)])  # type: ignore[arg-type]
    (found,) = load_comparisons(tmp_path / "votes.jsonl").records
    assert {v.annotator: v.choice for v in found.votes} == {"ann": 1, "bob": 1} and talk.turns[
        0
    ].chosen == 1


def test_a_vote_needs_two_different_answers(talk: Talk, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no two answers"):
        talk.prefer("a", "me")
    talk.say("try it", silent)
    with pytest.raises(ConfigError, match="no two answers"):
        talk.prefer("a", "me")
    talk.speakers, talk.engine.generation = ["ppo", "ppo"], talk.engine.generation
    talk.set_temperature(0)
    talk.say("try it", silent)
    with pytest.raises(ConfigError, match="are the same"):
        talk.prefer("a", "me")
    assert talk.comparisons() == []
    write_jsonl(tmp_path / "x.jsonl", [])
    (tmp_path / "x.jsonl").write_text('{"text": "no comparison"}\n')
    good = Comparison("c", [Message("user", "q")], [Response("a"), Response("b")])
    with pytest.raises(DataError, match=r"x\.jsonl"):
        keep(tmp_path / "x.jsonl", [good])


def test_retry_draws_another_answer_and_undo_takes_the_turn_back(talk: Talk) -> None:
    first = talk.say("try it", silent)
    again = talk.again(silent)
    assert (
        len(talk.turns) == 1
        and again.sent == first.sent
        and again.answers[0].token_ids != first.answers[0].token_ids
    )
    assert talk.undo() is again and talk.turns == []
    with pytest.raises(ConfigError, match="no message yet"):
        talk.undo()
    talk.set_temperature("0")
    greedy = [talk.say("try it", silent).answers[0].text, talk.again(silent).answers[0].text]
    assert greedy[0] == greedy[1]
    for wrong in ("warm", "-1", "nan"):
        with pytest.raises(ConfigError, match="is not a number of 0 or more"):
            talk.set_temperature(wrong)


def test_ctrl_c_ends_the_answer_and_keeps_what_was_said(talk: Talk) -> None:
    talk.speakers = ["ppo", "sft"]

    def third(side: int, text: str) -> None:
        heard.append(text)
        if len(heard) == 3:
            raise KeyboardInterrupt

    heard: list[str] = []
    turn = talk.say("try it", third)
    assert [(a.who, a.ended) for a in turn.answers] == [("ppo", "interrupt")] and turn.answers[
        0
    ].text == heard[-1]
    whole = talk.again(silent)
    assert [a.ended for a in whole.answers] != ["interrupt"] and len(whole.answers) == 2

    def at_once(token: int) -> None:
        raise KeyboardInterrupt

    talk.engine.stream = lambda ids, seed, heard: at_once(0)  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        talk.say("more", silent)
    assert talk.turns == [whole]


def test_scores_are_the_reward_models_own(
    run: Path, talk: Talk, tmp_path: Path, tiny_folder: Path
) -> None:
    talk.speakers = ["ppo", "sft"]
    turn = talk.say("try it", silent)
    (_, a), (_, b) = talk.scores()
    assert len(a) == len(b) == 2 and a != b
    backbone = open_policies([f"{run}:sft"]).runtime.backbone
    from prefloop.data.packing import Document

    reward = Reward.load(backbone, run / "artifacts" / "reward")
    alone = reward.score([Document(turn.sent_ids, [turn.answers[1].token_ids], [0])])
    assert alone[0] == pytest.approx(b, abs=1e-4)
    lone = make_run(tmp_path, "lone", tiny_folder, slots=("sft",))
    other = Talk(open_policies([session.named(lone, "sft")]), ["sft"], lone)
    other.say("try it", silent)
    with pytest.raises(ModelError, match="no reward model"):
        other.scores()


def test_another_runs_result_can_join_and_one_of_another_backbone_is_refused(
    talk: Talk, tmp_path: Path, tiny_folder: Path, tiny_folders: Callable[[str], Path]
) -> None:
    near = make_run(tmp_path / "a", "near", tiny_folder, seed=7, slots=("sft",))
    far = make_run(tmp_path / "b", "far", tiny_folders("qwen2"), slots=("sft",))
    talk.speakers = ["ppo", f"{near}:sft"]
    assert [a.who for a in talk.say("try it", silent).answers] == ["ppo", f"{near}:sft"]
    with pytest.raises(ModelError, match=r"'ppo' and '.*far:sft' belong to different backbones"):
        talk.role(f"{far}:sft")


def test_the_aligned_policy_of_the_last_command_is_who_one_talks_to(
    run: Path, tmp_path: Path, tiny_folder: Path
) -> None:
    assert default_name(run, None) == "ppo" and default_name(run, "sft") == "sft"
    only = make_run(tmp_path, "only", tiny_folder, slots=("sft",))
    assert default_name(only, "dpo") == "sft"


def test_tools_are_sent_and_kept_with_the_comparison(
    talk: Talk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "tools.json"
    path.write_text(json.dumps([WEATHER]))
    talk.speakers, talk.tools, talk.system = ["ppo", "sft"], session.read_tools(path), "Be good."
    rendered = []
    render = ChatFormat.prompt_ids
    monkeypatch.setattr(
        ChatFormat,
        "prompt_ids",
        lambda self, prompt: rendered.append(prompt) or render(self, Conversation(prompt)),
    )
    talk.say("try it", silent)
    assert rendered[0].tools == [WEATHER] and [m.role for m in rendered[0]] == ["system", "user"]
    kept = talk.prefer("a", "ann")
    assert kept.prompt.tools == [WEATHER]
    keep(tmp_path / "votes.jsonl", [kept])
    assert json.loads((tmp_path / "votes.jsonl").read_text())["tools"] == [WEATHER]


@pytest.mark.parametrize("text", ["", "{", '{"name": "f"}', "[]", '["f"]'])
def test_a_file_that_holds_no_tools_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "tools.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"--tools .*tools\.json: .*give a JSON list"):
        session.read_tools(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        session.read_tools(tmp_path / "none.json")
