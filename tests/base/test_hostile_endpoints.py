"""Other people's servers: whatever one answers ends in a value or in the documented error, within
the deadline and the cap.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import itertools
import json
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from judge_endpoint import PROMPT, judge_at
from raw_server import Answer, Server, http
from reliability.endpoints import COMPLETION, SCORES, campaign

from prefloop.base.endpoint import Endpoint
from prefloop.base.http import MOST_BYTES, Client, is_loopback
from prefloop.base.json_object import DEEPEST, parsed
from prefloop.errors import EngineError, JudgeError, RequestError, RewardError
from prefloop.records import Prompt
from prefloop.rollouts.server import rollouts_of
from prefloop.training import rewards

Ask = Callable[..., str]
KEY = "topsecret-0123456789"


def judge(url: str, deadline_s: float = 10.0) -> str:
    """What a judge's verdict failed with, or its score."""
    asked = judge_at(url, timeout=deadline_s, max_retries=0)
    try:
        verdict = asked.compare(PROMPT, "a", "b")
    except JudgeError as error:
        return str(error)
    finally:
        asked.close()
    return verdict.failed or str(verdict.score)


def reward(url: str, deadline_s: float = 10.0) -> str:
    """What a rollout's rewards failed with, or the rewards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rewards, "_MAX_RETRIES", 0)
        patch.setattr(rewards, "_TIMEOUT_S", deadline_s)
        try:
            (found_B,) = (
                rewards.Rewards({url: 1.0}).scores_B([Prompt("p", PROMPT)] * 2, ["a", "b"]).values()
            )
        except RewardError as error:
            return str(error)
    return str(found_B.tolist())


CLIENTS = pytest.mark.parametrize("ask", [judge, reward])


@contextlib.contextmanager
def answering(answer: bytes | Callable[[], Answer]) -> Iterator[Server]:
    with Server((lambda: [answer]) if isinstance(answer, bytes) else answer) as server:
        yield server


@pytest.mark.slow
@CLIENTS
@pytest.mark.parametrize(
    "start", [b"HTTP/1.1 200 OK\r\nX: ", http(b"", "Content-Length: 99999999", length=False), b""]
)
def test_a_byte_now_and_then_does_not_put_the_deadline_off(ask: Ask, start: bytes) -> None:
    with Server(lambda: server.trickle(start)) as server:
        assert "no answer within 0.3 s" in ask(server.url, deadline_s=0.3)


@CLIENTS
def test_a_server_that_says_100_continue_for_ever_is_left_at_the_deadline(ask: Ask) -> None:
    with answering(lambda: itertools.repeat(b"HTTP/1.1 100 Continue\r\n\r\n" * 99)) as server:
        assert "no answer within 0.3 s" in ask(server.url, deadline_s=0.3)


@functools.cache
def bomb() -> bytes:
    """400 MB of blanks in 400 KB."""
    packer = zlib.compressobj(wbits=zlib.MAX_WBITS | 16)
    return b"".join([*(packer.compress(b" " * 4_000_000) for _ in range(100)), packer.flush()])


LARGE: dict[str, Callable[[], Answer]] = {
    "endless": lambda: itertools.chain([http(b"", length=False)], itertools.repeat(b" " * 65536)),
    "endless chunks": lambda: itertools.chain(
        [http(b"", "Transfer-Encoding: chunked", length=False)],
        itertools.repeat(b"10000\r\n" + b" " * 65536 + b"\r\n"),
    ),
    "gzip bomb": lambda: [http(bomb(), "Content-Encoding: gzip")],
}


@CLIENTS
@pytest.mark.parametrize("kind", LARGE)
def test_an_answer_past_the_cap_is_refused_unpacked_or_not(ask: Ask, kind: str) -> None:
    with answering(LARGE[kind]) as server:
        assert f"the answer has more than {MOST_BYTES:,} bytes" in ask(server.url)
        assert len(server.requests) <= 2, "what is too large is not asked for again"


ODD = {
    "deep": (http(b"[" * 200_000), "not a chat completion|expected"),
    "deep and whole": (http(b'{"a":' * 500 + b"1" + b"}" * 500), "not a chat completion|expected"),
    "a page": (http(b"<html>come back later</html>", "Content-Type: text/html"), "come back later"),
    "nothing": (http(b""), r"\(empty body\)"),
    "not UTF-8": (http(b'{"\xff\xfe'), "not a chat completion|expected"),
    "cut gzip": (
        http(gzip.compress(b"{}" * 999)[:20], "Content-Encoding: gzip"),
        "DecodingError: the gzipped answer",
    ),
    "no gzip": (http(b"{}", "Content-Encoding: gzip"), "DecodingError: the answer is no gzip"),
    "other packing": (http(b"{}", "Content-Encoding: br"), "packed with br, asked for was gzip"),
    "cut": (http(b"{", "Content-Length: 999", length=False), "RemoteProtocolError"),
    "two lengths": (http(b"{}", "Content-Length: 9"), "RemoteProtocolError"),
    "10,000 headers": (
        http(b"{}", *(f"X-{i}: {i:09}" for i in range(10_000))),
        "RemoteProtocolError",
    ),
    "no HTTP": (b"SSH-2.0-OpenSSH_9.2\r\n", "RemoteProtocolError"),
    "nobody": (b"", "RemoteProtocolError"),
    "500": (http(b"boom", status="500 E"), "HTTP 500: boom"),
    "a codec for a charset": (
        http(zlib.compress(b"{}"), "Content-Type: text/plain; charset=zlib"),
        "chat comp|expected",
    ),
    "odd redirect": (
        http(b"", "Location: http://[", status="307 T"),
        "HTTP 307|RemoteProtocolError",
    ),
    "odd cookie": (
        http(b"no", "Set-Cookie: a=b; expires=x; Max-Age=9e99"),
        "not a chat completion|expected",
    ),
    "odd retry-after": (
        http(b"", "Retry-After: Mon, 01 Jan 0001 00:00:00 -2359", status="429 S"),
        "HTTP 429",
    ),
}


@CLIENTS
@pytest.mark.parametrize("kind", ODD)
def test_odd_answers_end_in_the_error_of_the_client(ask: Ask, kind: str) -> None:
    answer, words = ODD[kind]
    with answering(answer) as server:
        found = ask(server.url)
    assert any(word in found for word in words.replace("\\", "").split("|")), found
    assert len(found) < 1500, "an excerpt is an excerpt"


def test_numbers_that_are_none_and_wrong_types_are_no_scores_and_no_completion() -> None:
    for body in (
        '{"scores": [NaN, 1]}',
        '{"scores": [1, Infinity]}',
        '{"scores": [1, {"a": 1}]}',
        '{"scores": {"a": 1}}',
    ):
        with answering(http(body.encode())) as server:
            assert "expected" in reward(server.url)
    for usage in (
        {"prompt_tokens": 10**400, "completion_tokens": 1},
        {"prompt_tokens": float("nan")},
        [],
        "x",
    ):
        with answering(http(json.dumps(COMPLETION | {"usage": usage}).encode())) as server:
            assert judge(server.url) == "1.0", "a report of tokens that is none costs no verdict"


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3)
    ),
    max_leaves=8,
)


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(
    anywhere=JSON, key=st.sampled_from([None, "choices", "message", "content", "usage", "scores"])
)
def test_any_json_ends_in_a_value_or_an_error(anywhere: Any, key: str | None) -> None:
    def put(good: Any) -> Any:
        if isinstance(good, dict):
            return {name: anywhere if name == key else put(value) for name, value in good.items()}
        return [put(item) for item in good] if isinstance(good, list) else good

    with answering(lambda: [http(json.dumps(sent[0]).encode())]) as server:
        sent = [anywhere if key is None else put(COMPLETION)]
        assert judge(server.url)
        sent[0] = anywhere if key is None else put(SCORES)
        assert reward(server.url)
    with contextlib.suppress(EngineError):
        rollouts_of(anywhere, 0, 2, 7, 1024, "server")


@pytest.mark.parametrize(
    ("token", "logp"),
    [(-1, -0.5), (1024, -0.5), ("5", -0.5), (5, float("nan")), (5, "x"), (5, 10**400)],
)
def test_a_rollout_of_other_tokens_or_no_log_probs_is_refused(token: Any, logp: Any) -> None:
    choices = [{"index": 0, "token_ids": [7, token], "logprobs": {"token_logprobs": [-0.1, logp]}}]
    with pytest.raises(
        EngineError, match=r"not among the model's 1,024, or a log-prob that is not finite"
    ):
        rollouts_of({"choices": choices}, 0, 1, 7, 1024, "server")


def test_the_key_goes_to_the_named_address_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(http(b"{}")) as other:
        away = http(b"", f"Location: {other.url}", status="307 T")
        with (
            Server(lambda: [away]) as server,
            Client(server.url, 5.0, headers={"Authorization": KEY}) as client,
        ):
            answer = client.get("/score")
            assert answer.status_code == 307 and answer.headers["location"] == other.url
            for elsewhere in (
                other.url,
                server.url.replace("127.0.0.1", "localhost"),
                server.url.replace("http", "https"),
            ):
                with pytest.raises(httpx.UnsupportedProtocol, match="not the server's own"):
                    client.get(elsewhere)
        assert not other.requests and len(server.requests) == 1


def test_no_cookie_of_a_server_is_sent_back() -> None:
    with (
        Server(lambda: [http(b"{}", "Set-Cookie: id=1")]) as server,
        Client(server.url, 5.0) as client,
    ):
        client.get("/")
        client.get("/")
        assert len(server.requests) == 2 and b"cookie" not in b"".join(server.requests).lower()


def test_an_echoed_key_is_blotted_out_in_every_form(monkeypatch: pytest.MonkeyPatch) -> None:
    key = 'quo"ted\\key'
    monkeypatch.setenv("ODD_KEY", key)
    with answering(http(json.dumps({"you sent": key}).encode(), status="400 B")) as server:
        endpoint = Endpoint(
            httpx.URL(server.url), "who", "setting", "ODD_KEY", True, 5.0, 0, 0.0, {}
        )
        with pytest.raises(RequestError, match=r"you sent.*\*\*\*") as caught:
            endpoint.get()
        assert "quo" not in str(caught.value)


def test_json_is_bounded_in_depth_and_a_packed_answer_arrives() -> None:
    assert parsed("[" * DEEPEST + "]" * DEEPEST)
    for deep in ("[" * (DEEPEST + 2) + "]" * (DEEPEST + 2), "[" * 100_000):
        with pytest.raises(ValueError):
            parsed(deep)
    content = json.dumps(list(range(200_000))).encode()
    with (
        answering(http(gzip.compress(content), "Content-Encoding: gzip")) as server,
        Client(server.url, 5.0) as client,
    ):
        assert client.get("/").content == content
    with answering(http(content)) as server, Client(server.url, 5.0, most=99) as client:
        with pytest.raises(httpx.TransportError, match="more than 99 bytes"):
            client.get("/")
        with pytest.raises(httpx.TransportError), client.stream("GET", "/"):
            pass


def test_what_never_leaves_the_machine_is_known_by_its_address() -> None:
    assert all(map(is_loopback, ("localhost", "127.0.0.1", "127.1.2.3", "::1")))
    assert not any(map(is_loopback, ("10.0.0.1", "localhost.example.org", "example.org")))


def test_a_small_campaign_of_random_answers_finds_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert campaign(seed=5, size=60, measured=False) == []
