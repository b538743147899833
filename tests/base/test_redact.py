"""Addresses lose what may be a secret, everything else stays."""

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from prefloop.base.console import shown
from prefloop.base.redact import (
    command_without_secrets,
    tree_without_secrets,
    value_without_secrets,
    without_secrets,
)
from prefloop.config.load import parse, validated
from prefloop.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        (
            "--ppo.rewards http://u:pw@host:1/score?token=abc 1.0",
            "--ppo.rewards http://host:1/score 1.0",
        ),
        ('[["https://h/x?k=1#f", 2.0], ["a.py:f", 1]]', '[["https://h/x", 2.0], ["a.py:f", 1]]'),
        ("http://127.0.0.1:8000/v1 --model a@b", "http://127.0.0.1:8000/v1 --model a@b"),
        ("runs/x?y.jsonl --algo ppo", "runs/x?y.jsonl --algo ppo"),
        ("x=https://user@h", "x=https://h"),
        ("http://u:a/b@h/x and on", "http://h/x and on"),
        ("found 'http://u:a b\"c@h:1/x'; see a@b", "found 'http://h:1/x'; see a@b"),
        ("http://h/x;key=abc and http://h/y; or so", "http://h/x and http://h/y; or so"),
        ("https://h/x?api_key=a,b]c end", "https://h/x end"),
        ("https://medium.com/@me/story", "https://medium.com/@me/story"),
        ("Authorization: Bearer abc.def-123", "Authorization: Bearer ***"),
        ("as a Bearer token, the bearer of news", "as a Bearer token, the bearer of news"),
        ("api_key=abc&x password=d", "api_key=***&x password=***"),
        ("sk-proj-0123456789abcdef, hf_abcdefghijklmnopqrst AKIAABCDEFGHIJKLMNOP", "***, *** ***"),
        ("sk-learn, hf_hub and AKIA", "sk-learn, hf_hub and AKIA"),
        ("max_tokens=5 pad_token=3", "max_tokens=5 pad_token=3"),
        ("token=abc&access_token=d Access-Token=e", "token=***&access_token=*** Access-Token=***"),
        ("authorization=Bearer abc; authorization=abc", "authorization=***; authorization=***"),
        ("(see https://x.org/a?b=1)", "(see https://x.org/a)"),
        (
            "see [it](https://x.org/a#b). Or https://h/x?k=1, https://h;k=1!",
            "see [it](https://x.org/a). Or https://h/x, https://h!",
        ),
    ],
)
def test_addresses_lose_user_password_query_and_fragment(text: str, clean: str) -> None:
    assert without_secrets(text) == clean


@pytest.mark.parametrize(
    ("note", "clean"),
    [
        ("http://localhost:8000 served the judge; questions to me@lab.org", None),
        ("http://localhost:8000/v1, which served the judge: see me@lab.org", None),
        (
            "https://arxiv.org/abs/1#S2 says why it is so; see also below.",
            "https://arxiv.org/abs/1 says why it is so; see also below.",
        ),
        (
            "https://x.org/a?key=1 and http://u:pw@h/x are both left out",
            "https://x.org/a and http://h/x are both left out",
        ),
        ("(see https://x.org/a?b=1)", "(see https://x.org/a)"),
        ("http://u:some long pass phrase@h/x", "http://h/x"),
        ("https://h/x?key=a b", "https://h/x"),
    ],
)
def test_a_sentence_that_begins_with_an_address_is_no_address(note: str, clean: str | None) -> None:
    assert tree_without_secrets({"notes": [note]}) == {"notes": [clean or note]}


SPECIAL = st.text(st.sampled_from("aZ09/\\'\"@:;?#&=%!$,.[]{}<> \u00e9"), min_size=0, max_size=12)


def held(secret: str, *texts: str) -> list[str]:
    """The texts that hold the secret, as it is, as JSON or as Python or a shell writes it."""
    forms = {secret, json.dumps(secret)[1:-1], repr(secret)[1:-1], secret.replace("'", "'\"'\"'")}
    return [text for text in texts if any(form in text for form in forms)]


@settings(max_examples=150, deadline=None)
@given(SPECIAL)
@example("a b")
@example("p'q\"r s")
@example("a@b:c://d")
def test_no_password_or_query_of_an_address_is_kept_or_said(odd: str) -> None:
    secret = f"S3{odd}7T"
    for address in (
        f"http://me:{secret}@h:1/v1",
        f"https://h/v1?api_key={secret}",
        f"https://h/v1;key={secret}",
    ):
        assert "h" in value_without_secrets(address)
        kept = [
            value_without_secrets(address),
            value_without_secrets(f"--backbone.model={address}"),
            command_without_secrets(["rlhf.py", "--rollout", address]),
            json.dumps(tree_without_secrets({"notes": [address], "rewards": {address: 1.0}})),
        ]
        with pytest.raises(ConfigError) as refused:
            validated({"seed": address, "algo": [address]}, "flags")
        assert not held(secret, *kept, shown(str(refused.value)))


def test_a_refused_flag_is_shown_without_its_secret_or_power(
    capsys: pytest.CaptureFixture[str],
) -> None:
    secret = "top'secret \"word"
    for flag in (
        ["--rollout", f"http://u:{secret}@h"],
        [f"--rollout=http://u:{secret}@h"],
        ["--seed", "\x1b]0;x\x07"],
    ):
        with pytest.raises(SystemExit) as left:
            parse(flag, "rlhf.py", "")
        said = capsys.readouterr()
        assert left.value.code == 2 and flag[0].partition("=")[0] in said.err
        assert (
            "secret" not in said.err + said.out
            and "word" not in said.err
            and "\x1b]" not in said.err
        )
    for value, words in (
        ("a/" * 2500 + "a", "longer than files have"),
        (f"http://u:{'secret/' * 700}@h", "'http://h'"),
        ("a\0b", "control characters"),
    ):
        with pytest.raises(SystemExit) as left:
            parse(["--backbone.model", value], "rlhf.py", "")
        said = capsys.readouterr()
        assert left.value.code == 2 and words in " ".join(said.err.split())
        assert "secret" not in said.err and len(said.err) < 5_000
    with pytest.raises(SystemExit):
        parse(["--seed", "9" * 50 + "x" * 100_000], "rlhf.py", "")
    assert len(capsys.readouterr().err) < 4_000
