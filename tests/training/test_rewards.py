"""Rewards from functions and servers: weights, order, failures, keys of artifacts, flags. The
servers are real ones on loopback.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from judge_endpoint import Endpoint, endpoint_fixture  # noqa: F401
from turns import WEATHER, looked
from turns import asked as with_tools

from prefloop.base import endpoint as endpoint_module
from prefloop.config import PPOConfig
from prefloop.config.load import parse
from prefloop.errors import ConfigError, RewardError
from prefloop.records import Message, Prompt
from prefloop.training.rewards import (
    KEY_ENV,
    FunctionSource,
    HTTPSource,
    Rewards,
    combined_B,
    response_ids,
)

KEY = "topsecret-0123456789"
PROMPTS = [
    Prompt(f"p{i}", [Message("user", "Count.")], {"answer": str(i)} if i == 1 else {})
    for i in (0, 0, 1)
]
TEXTS = ["zero", "nought", "one"]
Started = Callable[[Callable[[int, Any], Any]], Endpoint]


def scores(value: Any) -> tuple[int, dict[str, str], str]:
    return 200, {}, json.dumps({"scores": value})


def by_length(number: int, body: Any) -> tuple[int, dict[str, str], str]:
    return scores([len(item["response"]) for item in body["items"]])


def asked(
    source: HTTPSource, prompts: list[Prompt] = PROMPTS, texts: list[str] = TEXTS
) -> list[float]:
    return source.scores(prompts, texts, response_ids(prompts))


def function(folder: Path, body: str, name: str = "mine.py") -> str:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(f"def score(prompt, response):\n    return {body}\n")
    return f"{folder / name}:score"


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Waits between attempts are noted and skipped."""
    found: list[float] = []
    monkeypatch.setattr(endpoint_module, "_wait", lambda seconds, stop: found.append(seconds))
    yield found


def test_sources_are_added_with_their_weights(endpoint: Started, tmp_path: Path) -> None:
    server = endpoint(by_length)
    rewards = Rewards({function(tmp_path, "response.count('o')"): -0.5, f"{server.url}/score": 2.0})
    found = rewards.scores_B(PROMPTS, TEXTS)
    assert {name: x.tolist() for name, x in found.items()} == {
        "score": [1.0, 1.0, 1.0],
        f"127.0.0.1:{server.server.server_port}/v1/score": [4.0, 6.0, 3.0],
    }
    model_B = torch.tensor([0.25, -1.0, 8.0])
    total_B = combined_B(
        {"reward_model": model_B, **found}, {"reward_model": 3.0, **rewards.weights}
    )
    assert total_B.tolist() == [3 * 0.25 - 0.5 + 2 * 4, 3 * -1 - 0.5 + 2 * 6, 3 * 8 - 0.5 + 2 * 3]
    assert combined_B(found, {name: 0.0 for name in found}).tolist() == [0.0, 0.0, 0.0]


def test_a_server_is_asked_in_batches_whose_order_stays(endpoint: Started) -> None:
    server = endpoint(lambda n, body: scores([float(item["response"]) for item in body["items"]]))
    prompts = [
        Prompt(f"p{i // 2}", [Message("system", "Be short."), Message("user", "7?")])
        for i in range(150)
    ]
    values = asked(HTTPSource(f"{server.url}/score"), prompts, [str(i) for i in range(150)])
    assert values == [float(i) for i in range(150)]
    assert [len(body["items"]) for body in server.bodies] == [64, 64, 22]
    assert server.bodies[1]["items"][1] == {
        "id": "p32/1",
        "prompt": [{"role": "system", "content": "Be short."}, {"role": "user", "content": "7?"}],
        "response": "65",
    }


def test_ids_count_the_responses_of_a_prompt_and_meta_goes_along(endpoint: Started) -> None:
    server = endpoint(by_length)
    asked(HTTPSource(server.url), [*PROMPTS, PROMPTS[0]], [*TEXTS, "half an emoji \ud83d"])
    items = server.bodies[0]["items"]
    assert [item["id"] for item in items] == ["p0/0", "p0/1", "p1/0", "p0/2"]
    assert [item.get("meta") for item in items] == [None, None, {"answer": "1"}, None]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (
            "<html>hello</html>",
            r'expected \{"scores": .*found <html>hello</html> \(asked about responses p0/0 to p1/0',
        ),
        ("[1, 2, 3]", "expected .*scores.*found \\[1, 2, 3\\]"),
        ('{"score": [1, 2, 3]}', "expected .*scores.*found .*score"),
        ('{"scores": 3}', "expected .*scores.*found"),
        ('{"scores": [1, 2]}', r"2 scores for 3 items \(asked about responses p0/0 to p1/0\)"),
        (
            '{"scores": [1, NaN, 3]}',
            "on prompt 'p0', response p0/1: found nan, expected a finite number",
        ),
        ('{"scores": [1, 2, -Infinity]}', "on prompt 'p1', response p1/0: found -inf"),
        ('{"scores": [1, 1e39, 3]}', "response p0/1: found 1e\\+39"),
        ('{"scores": [true, 2, 3]}', "response p0/0: found True"),
        (
            '{"scores": [1, "2", null]}',
            r"response p0/1: found '2', expected a finite number \(and 1 more of 3\)",
        ),
    ],
)
def test_an_answer_that_is_no_list_of_scores_names_source_and_response(
    endpoint: Started, body: str, words: str
) -> None:
    server = endpoint(lambda n, _: (200, {}, body))
    with pytest.raises(RewardError, match=f"reward '127.0.0.1:[0-9]+/v1/score'.*{words}") as caught:
        Rewards({f"{server.url}/score": 1.0}).scores_B(PROMPTS, TEXTS)
    assert "Nothing was learnt from this rollout" in str(caught.value)
    assert len(server.bodies) == 1


@pytest.mark.parametrize("body", ["float('nan')", "float('inf')", "None", "'3'", "1e39", "1 / 0"])
def test_a_function_that_gives_no_finite_number_names_itself_and_the_response(
    tmp_path: Path, body: str
) -> None:
    spec = function(tmp_path, f"{body} if response == 'nought' else 1")
    with pytest.raises(
        RewardError, match=r"reward 'score'.*response p0/1: .*(returned|raised|found)"
    ) as caught:
        Rewards({spec: 1.0}).scores_B(PROMPTS, TEXTS)
    assert "'p0'" in str(caught.value) and "Nothing was learnt" in str(caught.value)


def test_what_may_pass_is_tried_again(endpoint: Started, waits: list[float]) -> None:
    answers = [(503, {}, "warming up"), (429, {"Retry-After": "7"}, "slow down"), scores([1, 2, 3])]
    server = endpoint(lambda n, body: answers[n])
    assert asked(HTTPSource(server.url)) == [1, 2, 3]
    assert server.bodies[0] == server.bodies[2] and waits[1] == 7.0


def test_a_server_that_stays_broken_ends_in_an_error_with_its_answer(
    endpoint: Started, waits: list[float]
) -> None:
    server = endpoint(lambda n, body: (500, {}, "boom"))
    with pytest.raises(
        RewardError,
        match=r"reward '.*': HTTP 500: boom \(6 attempts\); the server failed.*p0/0 to p1/0",
    ):
        asked(HTTPSource(server.url))
    assert len(server.bodies) == 6 and all(
        0.75 * 2**k <= wait <= 1.25 * 2**k for k, wait in enumerate(waits)
    )
    server.server.server_close()
    with pytest.raises(
        RewardError, match=r"\(6 attempts\); is the server up, and is the URL in ppo.rewards right"
    ):
        asked(HTTPSource(server.url))


@pytest.mark.parametrize(
    ("status", "advice"), [(401, KEY_ENV), (404, "check the URL in ppo.rewards"), (422, "docs")]
)
def test_a_refusal_is_not_tried_again(endpoint: Started, status: int, advice: str) -> None:
    server = endpoint(lambda n, body: (status, {}, "no"))
    with pytest.raises(RewardError, match=f"HTTP {status}: no; .*{advice}"):
        asked(HTTPSource(server.url))
    assert len(server.bodies) == 1


def test_the_key_is_sent_to_the_server_alone(
    endpoint: Started,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    server = endpoint(by_length)
    asked(HTTPSource(server.url))
    monkeypatch.setenv(KEY_ENV, KEY)
    source = HTTPSource(server.url)
    asked(source)
    assert server.auth == [None, f"Bearer {KEY}"]
    echo = endpoint(lambda n, body: (200, {}, f'{{"error": "bad key {KEY}"}}'))
    with pytest.raises(RewardError, match=r"bad key \*\*\*") as caught:
        asked(HTTPSource(echo.url))
    odd = endpoint(lambda n, body: scores([f"Bearer {KEY}"] * 3))
    with pytest.raises(RewardError, match=r"found 'Bearer \*\*\*'") as no_number:
        Rewards({odd.url: 1.0}).scores_B(PROMPTS, TEXTS)
    away = endpoint(lambda n, body: (307, {"Location": f"{server.url}/else?key=hidden"}, ""))
    with pytest.raises(
        RewardError, match=r"HTTP 307.*it points to .*/v1/else, and redirects are not followed"
    ) as moved:
        asked(HTTPSource(away.url))
    assert len(server.bodies) == 2, "a redirect was followed with the key"
    assert "hidden" not in str(moved.value)
    monkeypatch.setenv(KEY_ENV, f"{KEY}\n{KEY}")
    with pytest.raises(RewardError, match="cannot be sent") as torn:
        asked(source)
    output = capfd.readouterr()
    said = [
        repr(source),
        str(vars(source)),
        source.fingerprint(),
        *(str(e.value) for e in (caught, no_number, moved, torn)),
    ]
    assert all(KEY not in text for text in [*said, caplog.text, output.out, output.err])


def test_what_is_no_source_or_no_weight_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"no user or password: put the key into .*PREFLOOP_REWARD_KEY"
    ) as caught:
        Rewards({f"http://me:{KEY}@127.0.0.1/score": 1.0})
    assert KEY not in str(caught.value)
    for key in ("ftp://host/score", "http://"):
        with pytest.raises(ConfigError, match=r"the URL in ppo.rewards must look like"):
            Rewards({key: 1.0})
    for key in ("127.0.0.1:8000/score", "mine.py"):
        with pytest.raises(ConfigError, match=r"neither path/to/file.py:function nor http"):
            Rewards({key: 1.0})
    with pytest.raises(ConfigError, match=r"cannot read .*absent.py"):
        Rewards({f"{tmp_path}/absent.py:score": 1.0})
    with pytest.raises(ConfigError, match="the weight of score is nan"):
        Rewards({function(tmp_path, "1"): float("nan")})


def test_names_are_short_and_tell_sources_apart(tmp_path: Path) -> None:
    function(tmp_path, "1", "a/one.py")
    function(tmp_path, "1", "b/one.py")
    other = function(tmp_path, "1", "two.py")
    assert list(Rewards({other: 1.0, "https://host/v1/?token=x": 1.0}).weights) == [
        "score",
        "host/v1",
    ]
    both = {f"{tmp_path}/{folder}/one.py:score": 1.0 for folder in "ab"} | {other: 2.0}
    urls = {"http://h:1/s": 3.0, "http://h:1/s?v=2": 4.0}
    rewards = Rewards(both | urls)
    names = ["one:score #1", "one:score #2", "two:score", "h:1/s #1", "h:1/s #2"]
    assert rewards.weights == dict(zip(names, (1.0, 1.0, 2.0, 3.0, 4.0), strict=True))
    assert [source.name for source in rewards.sources] == names


def test_the_key_of_the_artifact_follows_content_address_and_weight(tmp_path: Path) -> None:
    from prefloop.pipeline.stage import content
    from prefloop.pipeline.stages.ppo import PPO

    def parts(rewards: dict[str, float]) -> str:
        return json.dumps(content(PPO(PPOConfig(rewards=rewards)).parts()))

    url = "http://127.0.0.1:8000/score"
    found = [
        parts({}),
        parts({function(tmp_path, "1"): 1.0}),
        parts({function(tmp_path, "2"): 1.0}),
        parts({function(tmp_path, "2"): 0.5}),
        parts({url: 1.0}),
        parts({url: 0.5}),
        parts({f"{url}?v=2": 1.0}),
    ]
    assert len(set(found)) == len(found)
    assert parts({function(tmp_path, "1", "elsewhere.py"): 1.0}) == found[1], (
        "the file's place entered the key"
    )
    assert (
        FunctionSource(function(tmp_path, "1")).fingerprint()
        == FunctionSource(f"{tmp_path}/mine.py:score").fingerprint()
    )


def test_a_run_with_nothing_to_learn_from_is_refused(tmp_path: Path) -> None:
    from prefloop.pipeline.stages.ppo import PPO

    with pytest.raises(ConfigError, match="there is no reward to learn from"):
        PPO(PPOConfig(reward_model_weight=0.0, rewards={function(tmp_path, "1"): 0.0}))


def test_rewards_come_from_the_file_and_flags_replace_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"ppo": {"rewards": {"a.py:f": 1, "http://h/s": 0.25}}}))

    def rewards(*flags: str) -> dict[str, float]:
        return parse(list(flags), "rlhf.py", "").ppo.rewards

    flags = ("--ppo.rewards", "b.py:g", "0.5", "http://127.0.0.1:8000/score", "-1e-1")
    wanted = {"b.py:g": 0.5, "http://127.0.0.1:8000/score": -0.1}
    assert rewards() == {} and rewards("--config", str(path)) == {"a.py:f": 1.0, "http://h/s": 0.25}
    assert rewards(*flags, "--seed", "3") == wanted
    assert rewards("--config", str(path), *flags) == wanted
    assert rewards("--config", str(path), "--ppo.rewards") == {}
    for bad in (("b.py:g",), ("b.py:g", "much")):
        with pytest.raises(SystemExit):
            rewards("--ppo.rewards", *bad)
        assert "--ppo.rewards" in capsys.readouterr().err
    for more in ((), ("--config", str(path))):
        with pytest.raises(SystemExit):
            rewards(*more, "--help")
        help_text = " ".join(capsys.readouterr().out.split())
        assert "--ppo.rewards [NAME WEIGHT ...]" in help_text
    path.write_text(yaml.safe_dump({"ppo": {"rewards": {"a.py:f": "much"}}}))
    with pytest.raises(ConfigError, match=r"'ppo.rewards.a.py:f'.*much"):
        rewards("--config", str(path))


def test_functions_and_servers_are_given_tools_and_turns(endpoint: Started, tmp_path: Path) -> None:
    server = endpoint(by_length)
    prompts, replies = [Prompt("p", with_tools())] * 2, [looked(), "No."]
    HTTPSource(f"{server.url}/score").scores(prompts, replies, ["p/0", "p/1"])
    turned, plain = server.bodies[0]["items"]
    assert (
        turned["tools"] == plain["tools"] == [WEATHER]
        and [m["role"] for m in turned["prompt"]][-1] == "tool"
    )
    assert turned["response"] == looked().text and turned["turns"] == [
        turn.to_dict() for turn in looked().turns
    ]
    assert plain["response"] == "No." and "turns" not in plain
    (tmp_path / "calls.py").write_text(
        "def calls(prompt, response, turns):\n"
        "    known = {tool['function']['name'] for tool in prompt.prompt.tools}\n"
        "    return sum(call.name in known for turn in turns for call in turn.tool_calls)\n"
    )
    assert FunctionSource(f"{tmp_path}/calls.py:calls").scores(
        prompts, replies, ["p/0", "p/1"]
    ) == [1, 0]
