"""A real HTTP server on loopback that plays an OpenAI-compatible endpoint, and judges that need
none.
"""

import contextlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

from prefloop.evaluation.answers import read_answers
from prefloop.evaluation.compare import judge_answers
from prefloop.evaluation.judges.assessor import Grader, one_by_one
from prefloop.evaluation.judges.cache import VerdictCache
from prefloop.evaluation.judges.language_model import ModelJudge
from prefloop.evaluation.judges.openai import ChatEndpoint
from prefloop.evaluation.judges.verdict import Grade, Verdict
from prefloop.records import Message

PROMPT = [Message("user", "Name a prime.")]
PAIRS = [(PROMPT, f"a long answer {i}", f"b {i}") for i in range(6)]


class Endpoint:
    """A scripted endpoint: ``script(number, body)`` returns a reply's text, or (status, headers,
    body).
    """

    def __init__(self, script):
        self.script, self.bodies, self.auth, self.paths = script, [], [], []
        self.release = threading.Event()
        lock, endpoint = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    number = len(endpoint.bodies)
                    endpoint.bodies.append(body)
                    endpoint.auth.append(self.headers.get("Authorization"))
                    endpoint.paths.append(self.path)
                answer = endpoint.script(number, body)
                if answer is None:  # hang until the test is over
                    endpoint.release.wait(600)
                    self.close_connection = True
                    return
                status, headers, text = completion(answer) if isinstance(answer, str) else answer
                self.send_response(status)
                for name, value in {"Content-Length": str(len(text.encode())), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                with contextlib.suppress(ConnectionError):  # a client that was killed
                    self.wfile.write(text.encode())
                self.close_connection = (
                    "Content-Length" in headers
                )  # one that promised more than it sent

            def log_message(self, *args):
                """Keep the test output clean."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(
            target=self.server.serve_forever, kwargs={"poll_interval": 0.01}
        )
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def close(self):
        self.release.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def completion(text, prompt_tokens=None, completion_tokens=0, **message):
    """A chat completion that says ``text``, with its tokens where they are given."""
    body = {"choices": [{"message": {"role": "assistant", "content": text, **message}}]}
    if prompt_tokens is not None:
        body["usage"] = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
    return 200, {}, json.dumps(body)


@pytest.fixture(name="endpoint")
def endpoint_fixture():
    started = []

    def start(script):
        started.append(Endpoint(script))
        return started[-1]

    yield start
    for each in started:
        each.close()


def chat_at(url, **settings):
    return ChatEndpoint(
        url, "tiny", **{"backoff": 0.0, "max_retries": 2, "timeout": 300.0, **settings}
    )


def judge_at(url, **settings):
    return ModelJudge(chat_at(url, **settings))


def shown(body):
    """The two responses as the judge sees them, A first."""
    user = body["messages"][1]["content"]
    return [
        re.search(rf"=== BEGIN RESPONSE {x} (\w+) ===\n(.*?)\n=== END RESPONSE {x} \1", user, re.S)[
            2
        ]
        for x in "AB"
    ]


def prefers_longer(number, body):
    a, b = shown(body)
    return f"Reasons. [[{'C' if len(a) == len(b) else 'A' if len(a) > len(b) else 'B'}]]"


class Scripted:
    """A user's own judge of one order that follows a rule and counts its questions."""

    def __init__(self, rule, name="scripted"):
        self.rule, self.name, self.n = rule, name, 0

    def compare(self, prompt, a, b):
        self.n += 1
        return Verdict(self.rule(a, b), raw=("said",))


class Scored(Grader):
    """A grader by a rule on prompt and response that keeps the responses it was asked about."""

    name = "scored"

    def __init__(self, rule=lambda prompt, response: len(response)):
        self.rule, self.seen = rule, []

    def ask(self, questions, on_answer=None):
        return one_by_one(self.grade, questions, on_answer)

    def grade(self, prompt, response):
        self.seen.append(response)
        return Grade(float(self.rule(prompt, response)))


def judge_files(a, b, judge, cache, **options):
    """Two files of answers judged as ``prefloop judge`` does: the outcome, and its one duel's
    figures as attributes beside it.
    """
    sides = {"a": read_answers(a), "b": read_answers(b)}
    found = judge_answers(sides, judge, VerdictCache(cache), **options)
    duel = found.duels[0]
    return SimpleNamespace(
        **(vars(found) | vars(duel)), disagreement=duel.n_disagreed / duel.n_comparisons
    )


def files(tmp_path, pairs=PAIRS):
    """The two files of responses that make ``pairs``."""
    paths = []
    for side in (1, 2):
        rows = [
            {
                "id": f"p{i}",
                "prompt": [{"role": "user", "content": f"Q {i}"}],
                "response": pair[side],
            }
            for i, pair in enumerate(pairs)
        ]
        paths.append(tmp_path / f"{side}.jsonl")
        paths[-1].write_text("".join(json.dumps(row) + "\n" for row in rows))
    return paths


def asked(body):
    """What tells a question apart: its text."""
    return body["messages"][1]["content"]
