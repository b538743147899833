"""Results keep their values through the codec, and what nobody measured is absent."""

from __future__ import annotations

import json
import math

import pytest
from turns import WEATHER, asked, looked

from prefloop.artifacts.codec import read, to_json
from prefloop.artifacts.results import (
    AtEqualLength,
    Contamination,
    Estimate,
    Evaluation,
    Judging,
    Matrix,
    PolicyResult,
    Used,
)
from prefloop.data.overlap import Match
from prefloop.records import (
    Conversation,
    SampledConversation,
    SampledPrompt,
    ScoredResponse,
    from_dict,
    to_dict,
)

PROMPT = Conversation(asked(), [WEATHER])
ANSWER = looked()
SCORED = ScoredResponse(ANSWER.text, ANSWER.turns, True, 9, reward=-0.5, gold=0.25)


def test_an_evaluation_reads_back_as_it_was_written() -> None:
    row = PolicyResult(
        12,
        24,
        gold=Estimate(0.5, 0.4, 0.6),
        wins={"gold": Estimate(0.5), "judge": Estimate(0.7, 0.6, 0.8)},
        judge="openai:m",
        failed=0,
        at_equal_length=AtEqualLength("openai:m", unknown="6 prompts are too few"),
    )
    evaluation = Evaluation(
        {"ppo": row},
        {"gold": Estimate(0.49, 0.4, 0.6)},
        Matrix("m", ["sft", "ppo"], [[None, 0.3], [0.7, None]], elo={"ppo": Estimate(1041.0)}),
        Judging("m", used=Used(3, 0, 10, 2), asked=3, position_bias=Estimate(0.5)),
        Contamination(1, 0, [Match("e", "t", "prompt", "Why?", "Why?")]),
        [SampledConversation("p", PROMPT, {"ppo": SCORED})],
        0.7,
    )
    assert read(Evaluation, json.loads(json.dumps(to_json(evaluation)))) == evaluation


def test_a_sampled_prompt_reads_back_with_its_tools_and_turns() -> None:
    sampled = SampledPrompt("p", PROMPT, [SCORED, ScoredResponse("")], {"topic": {"of": ["a"]}})
    row = json.loads(json.dumps(to_dict(sampled)))
    assert from_dict(SampledPrompt, row) == sampled
    assert row["responses"][1] == {"text": ""} and "kl" not in row["responses"][0]


def test_what_was_not_measured_is_left_out_and_null_reads_as_absent() -> None:
    written = to_json(PolicyResult(kl=Estimate(math.nan), wins={"gold": Estimate(math.inf)}))
    assert written == {"wins": {"gold": {}}}
    assert read(PolicyResult, {"kl": None, "judge": None, "of a newer version": 1}) == (
        PolicyResult()
    )


def test_a_wrong_value_is_named_with_its_field() -> None:
    with pytest.raises(ValueError, match=r"field 'results\.ppo\.gold\.low'.*found 'low'"):
        read(Evaluation, {"results": {"ppo": {"gold": {"low": "low"}}}})
