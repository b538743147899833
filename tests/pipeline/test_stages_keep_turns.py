"""What stages write of conversations with tools and turns is read back the same, and nothing on the
way sees less.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from made_run import make_run
from tiny import tiny_model
from turns import WEATHER, asked, call, looked

from prefloop.artifacts.codec import read, to_json
from prefloop.artifacts.results import BASELINE, Evaluation
from prefloop.artifacts.store import Artifact
from prefloop.base.jsonl import write_rows
from prefloop.config import BackboneConfig, EvaluateConfig
from prefloop.data import sources
from prefloop.data.readable import parts, prompt_parts, prompt_text
from prefloop.data.sources import write_jsonl
from prefloop.data.tokens import Tokens
from prefloop.evaluation.answers import read_answers
from prefloop.labeling import scoring
from prefloop.labeling.selection import text_features
from prefloop.pipeline.stage import Stage
from prefloop.pipeline.stages import answer
from prefloop.pipeline.stages.answer import respond
from prefloop.pipeline.stages.compare import AGAIN, Compare
from prefloop.pipeline.stages.label_sources import Gold
from prefloop.planning.time import CHARACTERS, TEMPLATE, measure
from prefloop.records import Comparison, Conversation, Message, Prompt, Response, from_dict, to_dict
from prefloop.report import conversations
from prefloop.report.summary import Summary
from prefloop.runs.runtime import Runtime
from prefloop.runs.work import Work
from prefloop.training.samples import rows


class Answered(Stage):
    """One response of a policy, to a prompt with tools."""

    def __init__(self, policy: str, response: Response) -> None:
        self.name = self.produces = f"respond-{policy}"
        self.response = response

    def parts(self) -> dict[str, Any]:
        return {"response": to_dict(self.response)}

    def build(self, work: Work, inputs: dict[str, Artifact]) -> dict[str, Any]:
        said = {
            key: value for key, value in to_dict(self.response).items() if key in ("text", "turns")
        }
        measured = {"finished": True, "kl": 0.0, "reward": 1.0}
        write_rows(
            work.folder / "responses.jsonl",
            [{**to_dict(Prompt("p", asked())), "responses": [said | measured]}],
        )
        return {}


def test_gold_scorers_and_the_summary_see_tools_and_turns(
    tmp_path: Path, tiny_folder: Path
) -> None:
    (tmp_path / "gold.py").write_text(
        "def calls(prompt, response, turns):\n    return len(turns) + 10 *"
        " len(prompt.prompt.tools)\n"
    )
    runtime = Runtime(BackboneConfig(model=str(tiny_folder)), output=tmp_path / "runs")
    answers = {BASELINE: Response(looked().text), "ppo": looked(), AGAIN: Response(looked().text)}
    inputs = {
        f"respond-{policy}": Answered(policy, each).run(runtime) for policy, each in answers.items()
    }
    stage = Compare(
        [BASELINE, "ppo"], EvaluateConfig(samples=1, resamples=50), f"{tmp_path}/gold.py:calls"
    )
    evaluation = read(Evaluation, stage.run(runtime, **inputs).metrics)
    scores = [evaluation.results[policy].gold.value for policy in (BASELINE, "ppo")]
    assert scores == [11, 13]
    (sample,) = evaluation.samples
    assert (sample.id, sample.prompt) == ("p", Prompt("p", asked()).prompt)
    assert sample.responses["ppo"].turns == looked().turns
    assert "turns" not in to_json(sample)["responses"][BASELINE]
    section = conversations.section(None, Summary(samples=[sample]), [])
    assert section is not None
    (talk,) = section.shown
    assert [part.who for part in talk.turns] == [part.who for part in prompt_parts(asked())]
    assert [len(answer.said) for answer in talk.answers] == [0, 4]


def test_the_text_of_a_single_turn_has_no_heading() -> None:
    assert prompt_text([Message("user", "Hi")]) == "Hi"
    assert prompt_text(Conversation([Message("user", "Hi")], [WEATHER])).endswith("\n\n[user]\nHi")
    results = [Message("assistant", "", tool_calls=[call("Bern", "1"), call("Thun", "2")])]
    results += [
        Message("tool", "b", tool_call_id="2", name="other\nname"),
        Message("tool", "a", tool_call_id="1"),
    ]
    assert [part.who for part in parts(results)] == [
        "assistant calls",
        "tool other name",
        "tool get_weather",
    ]


def test_answers_of_a_policy_keep_the_tools_of_their_prompt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(
        tmp_path / "runs", "demo", tiny_model(tmp_path / "model", tokenizer="tools"), slots=("ppo",)
    )
    prompt = Conversation([Message("system", "Be brief."), Message("user", "try it")], [WEATHER])
    write_jsonl(tmp_path / "prompts.jsonl", [Prompt("p", prompt, {"k": 1})])
    monkeypatch.setattr(answer, "read_prompts", lambda *_, **__: [Prompt("p", prompt, {"k": 1})])
    found = respond([f"{run}:ppo"], tmp_path / "prompts.jsonl", output=tmp_path / "runs")
    ((back, replies),) = read_answers(found[f"{run}:ppo"]).values()
    assert (
        back == Prompt("p", prompt, {"k": 1})
        and back.prompt.tools == [WEATHER]
        and isinstance(replies[0], str)
    )


def test_samples_of_training_keep_tools() -> None:
    rollout = SimpleNamespace(token_ids=[1], finished=True)
    scored: Any = SimpleNamespace(
        rollouts=[rollout],
        kl_B=torch.zeros(1),
        reward_B=torch.zeros(1),
        length_B=torch.ones(1),
    )
    chat: Any = SimpleNamespace(decode=lambda ids: "said")
    (row,) = rows(chat, [Prompt("p", asked())], scored, 3)
    assert from_dict(Prompt, {key: row[key] for key in ("id", "prompt", "tools")}) == Prompt(
        "p", asked()
    )


def test_gold_scores_of_equal_texts_with_other_turns_are_apart(tmp_path: Path) -> None:
    (tmp_path / "gold.py").write_text(
        "def calls(prompt, response, turns):\n    return len(turns)\n"
    )
    gold, both = Gold(f"{tmp_path}/gold.py:calls"), [looked(), Response(looked().text)]
    assert gold.add(Prompt("p", asked()), both) == {0: 3, 1: 1}
    assert gold.of(Comparison("c", asked(), both)) == (3, 1)


def test_the_pool_encodes_equal_texts_with_other_turns_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encoded: list[Any] = []

    class Encodes:
        def __init__(self, *_: Any) -> None: ...

        def prompt(self, *_: Any) -> list[int]:
            return [1]

        def response(self, *what: Any) -> Tokens:
            encoded.append(what)
            return Tokens([len(encoded)], [True])

    class Scores:
        backbone, temperature = SimpleNamespace(chat=None), 1.0

        def score_and_embed(self, documents: Any, what: str, total: int) -> Any:
            return {k: [float(k)] for k in range(total)}, {
                k: torch.zeros(2).numpy() for k in range(total)
            }

    monkeypatch.setattr(scoring, "Encoder", Encodes)
    both = [looked(), Response(looked().text)]
    pairs = [Comparison("a", asked(), both), Comparison("b", asked(), both[::-1])]
    found = scoring.score_pool(Scores(), pairs, 512)  # type: ignore[arg-type]
    assert len(encoded) == 2 and found.margin_PK.tolist() == [[-1.0], [1.0]]


def test_features_and_plans_count_tools_and_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = [
        Comparison("a", asked(), [Response("x"), Response("y")]),
        Comparison("b", Conversation(asked()), [Response("x"), Response("y")]),
    ]
    with_tools, without = text_features(pairs)
    assert with_tools.nnz > without.nnz
    path = tmp_path / "prompts.jsonl"
    write_jsonl(path, [Prompt("p", asked())])
    monkeypatch.setattr(
        sources, "load_prompts", lambda *_, **__: SimpleNamespace(records=[Prompt("p", asked())])
    )
    found = measure(path, "prompts")
    assert found is not None
    everything = len(json.dumps(WEATHER["function"])) + sum(
        len(part.text) for part in parts(asked())
    )
    assert found.prompt == pytest.approx(TEMPLATE + everything / CHARACTERS)
