"""Random hostile answers against the judge's, the reward server's and the rollout server's clients.

    python benchmarks/reliability/endpoints.py --seed 0 --size 1000

Every answer is a good one, mutated as JSON, as bytes or as HTTP, and is sent by a real server on
the loopback. Each must end in a value or in the client's documented error, within its deadline,
with bounded memory. Exits 1 when one does not, and prints the seed of the case that shows it.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import json
import random
import resource
import sys
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from raw_server import Server, http

from prefloop.errors import EngineError, JudgeError, RequestError, RewardError
from prefloop.evaluation.judges.language_model import ModelJudge
from prefloop.evaluation.judges.openai import ChatEndpoint
from prefloop.records import Message, Prompt
from prefloop.rollouts.server import rollouts_of
from prefloop.training import rewards

DEADLINE_S = 2.0
SLACK_S = 3.0
"""Of a busy machine, on top of every deadline."""
MOST_GROWTH = 150 << 20
"""Bytes that the whole campaign may add to the process's peak memory."""

COMPLETION = {
    "id": "c1",
    "object": "chat.completion",
    "model": "tiny",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Reasons. [[A]]"},
            "finish_reason": "stop",
        }
    ],
    "usage": {"prompt_tokens": 12, "completion_tokens": 4},
}
SCORES = {"scores": [0.5, -1.0]}
ROLLOUTS = {
    "choices": [
        {"index": i, "token_ids": [5, 7], "logprobs": {"token_logprobs": [-0.5, -1.5]}}
        for i in range(2)
    ]
}
NASTY: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    10**400,
    1e308,
    float("nan"),
    float("-inf"),
    "",
    "\ud83d",
    "\x1b]0;x\x07",
    "\0",
    "A" * 5000,
    [],
    {},
    [[]],
    {"": None},
    "[[B]]",
    '{"verdict": "A"}',
    "<think>",
    "[[" * 500,
    {"content": {}},
    [None] * 50,
)


def mutated_json(value: Any, rng: random.Random) -> Any:
    """The value with something else at a random place, at any depth."""
    if isinstance(value, dict | list) and value and rng.random() < 0.8:
        copy = dict(value) if isinstance(value, dict) else list(value)
        key = rng.choice(list(copy) if isinstance(copy, dict) else range(len(copy)))
        if rng.random() < 0.15:
            del copy[key]
        else:
            copy[key] = mutated_json(copy[key], rng)
        return copy
    return rng.choice(NASTY)


def mutated_bytes(data: bytes, rng: random.Random) -> bytes:
    """A few bytes changed, cut out, doubled or put in."""
    found = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(found) + 1)
        till = min(len(found), at + rng.choice((1, 1, 2, 8, 200)))
        found[at:till] = rng.choice(
            (b"", rng.randbytes(till - at), bytes(found[at:till]) * 2, b"\r\n", b"\xff", b"{[")
        )
    return bytes(found)


def mutated_http(body: bytes, rng: random.Random) -> bytes:
    """A good body in an answer whose status and headers are odd."""
    packed = gzip.compress(body)
    odd = (
        "Content-Encoding: gzip",
        "Content-Encoding: br",
        "Content-Encoding: deflate, gzip",
        "Content-Type: text/html",
        "Content-Type: application/json; charset=zlib",
        "Content-Type: x; charset=utf-7",
        "Transfer-Encoding: chunked",
        "Transfer-Encoding: gzip, chunked",
        f"Content-Length: {rng.choice((0, 1, -1, 10**30, 'x', len(body) + 9))}",
        "Location: http://[",
        "Location: //\x01",
        "Location: /again",
        f"Retry-After: {rng.choice(('nan', 'inf', '-1', 'x' * 99))}",
        "Retry-After: Mon, 01 Jan 0001 00:00:00 -2359",
        "Retry-After: Fri, 99 Foo 99999 99:99:99 GMT",
        "Set-Cookie: a=b; expires=x; Max-Age=99999999999999999999",
        "X: " + "y" * rng.choice((10, 200_000)),
        "X\0: y",
        ": y",
        "X: \xff\xfe",
        "\r\n".join(f"X-{i}: y" for i in range(10_000)),
    )
    status = rng.choice(
        (
            "200 OK",
            "200 OK",
            "204 No Content",
            "301 Moved",
            "307 T",
            "400 B",
            "404 N",
            "429 S",
            "500 E",
            "999 X",
            "x y",
            "-1 N",
        )
    )
    answer = http(
        rng.choice((body, packed, b"")),
        *rng.sample(odd, rng.randint(1, 3)),
        status=status,
        length=rng.random() < 0.5,
    )
    return b"HTTP/1.1 100 Continue\r\n\r\n" * rng.choice((0, 0, 0, 1, 500)) + answer


def hostile(good: Any, rng: random.Random) -> tuple[str, bytes]:
    """The kind of a mutation, and the answer."""
    body = json.dumps(good).encode()
    kind = rng.choice(("json", "json", "bytes of the body", "bytes of the answer", "http", "deep"))
    if kind == "json":
        return kind, http(json.dumps(mutated_json(good, rng)).encode())
    if kind == "deep":
        opened = rng.choice(("[", '{"a":', '{"choices":[', '{"scores":[')).encode()
        return kind, http(opened * rng.choice((99, 900, 50_000)) + rng.choice((b"", b"1")))
    if kind == "http":
        return kind, mutated_http(body, rng)
    if kind == "bytes of the body":
        return kind, http(mutated_bytes(body, rng))
    return kind, mutated_bytes(http(body, "Content-Type: application/json"), rng)


def judge(url: str) -> str:
    """Ask a judge; what came of it."""
    asked = ModelJudge(ChatEndpoint(url, "tiny", timeout=DEADLINE_S, max_retries=0, backoff=0.0))
    with contextlib.closing(asked):
        return (
            "error"
            if asked.compare([Message("user", "Name a prime.")], "two", "four").failed
            else "value"
        )


def reward(url: str) -> str:
    """Ask a reward server; what came of it."""
    prompts = [Prompt("p", [Message("user", "Count.")])] * 2
    rewards.Rewards({url: 1.0}).scores_B(prompts, ["one", "two"])
    return "value"


def rollout(url: str) -> str:
    """Ask as a rollout engine does; what came of it."""
    reply = rewards.HTTPSource(url)._endpoint.get()
    try:
        answer = reply.json()
    except ValueError:
        return "error"  # which ServerEngine turns into an EngineError
    rollouts_of(answer, 0, 2, 7, 1024, url)
    return "value"


CLIENTS = {"judge": (judge, COMPLETION), "reward": (reward, SCORES), "rollout": (rollout, ROLLOUTS)}


@mock.patch.multiple(rewards, _MAX_RETRIES=0, _TIMEOUT_S=DEADLINE_S)
def campaign(seed: int, size: int, measured: bool = True) -> list[str]:
    """Run it and print the counts; the failures, each with its reproduction. ``measured``: time and
    memory count, which a busy machine upsets.
    """
    counts, failures, sent = Counter[tuple[str, str, str]](), list[str](), [b""]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with Server(lambda: [sent[0]]) as server:
        for number in range(size):
            name = list(CLIENTS)[number % len(CLIENTS)]
            ask, good = CLIENTS[name]
            kind, sent[0] = hostile(good, random.Random(f"{seed} {number}"))
            started = time.monotonic()
            try:
                outcome = ask(server.url)
            except (JudgeError, RewardError, RequestError, EngineError):
                outcome = "error"
            except Exception as error:
                outcome = "TRACEBACK"
                failures.append(
                    f"case '{seed} {number}', {name}, {kind}: {type(error).__name__}: {error}"[:300]
                )
                traceback.print_exc()
            if measured and (took := time.monotonic() - started) > 4 * DEADLINE_S + SLACK_S:
                failures.append(f"case '{seed} {number}', {name}, {kind}: took {took:.1f} s")
            counts[name, kind, outcome] += 1
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    if measured and grown > MOST_GROWTH:
        failures.append(f"peak memory grew by {grown >> 20} MiB")
    for key, count in sorted(counts.items()):
        print(f"{key[0]:8} {key[1]:20} {key[2]:10} {count:6,}")
    print(f"{size:,} answers, {len(failures)} failures, peak memory +{grown >> 20} MiB")
    return failures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=1000)
    options = parser.parse_args()
    found = campaign(options.seed, options.size)
    print("\n".join(found))
    sys.exit(bool(found))
