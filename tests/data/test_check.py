"""Bad rows are named with their number and field, set aside whole, never silently used; no
conversion loses a vote.
"""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefloop.data.check import Checked, Finding
from prefloop.data.convert import comparison_to_ratings, convert
from prefloop.data.sources import (
    detect_layout,
    kind_of,
    load_comparisons,
    load_demonstrations,
    load_prompts,
    load_ratings,
)
from prefloop.errors import DataError
from prefloop.records import (
    Comparison,
    Demonstration,
    Message,
    Prompt,
    Rating,
    Response,
    Thumb,
    Vote,
)

USER = {"role": "user", "content": "hi"}
BOT = {"role": "assistant", "content": "yo"}
PAIR = {"prompt": "hi", "chosen": "yes", "rejected": "no"}
VOTED = {
    "prompt": [USER],
    "responses": [{"text": "yes"}, {"text": "no"}],
    "votes": [{"annotator": "a", "choice": 0}],
}


def write(path: Path, *rows: object) -> Path:
    lines = (row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows)
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def hh(*turns: str) -> str:
    return "".join(f"\n\n{turn}" for turn in turns)


BAD_PAIRS = [
    # layout, the row, the field, the problem
    ("trl_explicit", {**PAIR, "chosen": ""}, "chosen", "is empty"),
    ("trl_explicit", {**PAIR, "chosen": " \n\t"}, "chosen", "only whitespace"),
    (
        "trl_explicit",
        {"prompt": "hi", "chosen": "yes"},
        "rejected",
        "is missing (found: prompt, chosen)",
    ),
    ("trl_explicit", {**PAIR, "chosen": [None]}, "chosen.0", "null, expected an object"),
    ("trl_explicit", {**PAIR, "chosen": 3}, "chosen", "a number, expected text"),
    ("trl_explicit", {**PAIR, "prompt": "  "}, "prompt", "only whitespace"),
    ("trl_explicit", {**PAIR, "prompt": []}, "prompt", "empty list"),
    ("trl_explicit", {**PAIR, "prompt": [USER, BOT]}, "prompt", "ends with the assistant's turn"),
    (
        "trl_explicit",
        {**PAIR, "prompt": [{**USER, "role": "system"}]},
        "prompt",
        "ends with the system's turn",
    ),
    (
        "trl_explicit",
        {**PAIR, "prompt": [{**USER, "content": ""}, USER]},
        "prompt.0.content",
        "is empty",
    ),
    (
        "trl_explicit",
        {**PAIR, "prompt": [{**USER, "role": "moderator"}]},
        "prompt.0.role",
        "unknown role 'moderator'",
    ),
    (
        "trl_explicit",
        {**PAIR, "prompt": [{**USER, "content": [1]}]},
        "prompt.0.content.0",
        "expected a text part",
    ),
    ("trl_explicit", {**PAIR, "prompt": ["hi"]}, "prompt.0", "text, expected an object"),
    ("trl_explicit", {**PAIR, "chosen": [USER]}, "chosen", "ends with the user's turn"),
    (
        "trl_explicit",
        {**PAIR, "chosen": [{**USER, "content": "other"}, BOT]},
        "chosen",
        "are not the prompt's",
    ),
    ("trl_explicit", {**PAIR, "rejected": " yes\n"}, "rejected", "same text as 'chosen'"),
    ("trl_explicit", {**PAIR, "rejected": "n\x00"}, "rejected", "NUL character at character 2"),
    ("trl_explicit", {**PAIR, "meta": {"a": ["\ud83d"]}}, "meta.a.0", "unpaired surrogate U+D83D"),
    ("trl_explicit", {**PAIR, "id": " "}, "id", "only whitespace"),
    ("trl_explicit", {**PAIR, "id": True}, "id", "true, expected text or a whole number"),
    (
        "hh",
        {"chosen": hh("Human: a", "Assistant: b"), "rejected": hh("Human: z", "Assistant: c")},
        "rejected",
        "turn 1",
    ),
    (
        "hh",
        {"chosen": hh("Human: a", "Assistant: b"), "rejected": "c"},
        "rejected",
        "does not begin with a 'Human:'",
    ),
    (
        "hh",
        {"chosen": hh("Human: a", "Assistant:"), "rejected": hh("Human: a", "Assistant: c")},
        "chosen.1",
        "is empty",
    ),
    (
        "hh",
        {"chosen": hh("Human: a"), "rejected": hh("Human: a", "Assistant: c")},
        "chosen",
        "ends with the user's",
    ),
    (
        "hh",
        {"chosen": hh("Assistant: a"), "rejected": hh("Assistant: b")},
        "chosen",
        "has no message",
    ),
    (
        "trl_implicit",
        {"chosen": [USER, BOT], "rejected": [USER, USER, BOT]},
        "rejected",
        "differ from turn 2",
    ),
    (
        "sharegpt_pairs",
        {"conversations": [{"from": "narrator", "value": "x"}]},
        "conversations.0.from",
        "unknown role 'narrator'",
    ),
    (
        "kto",
        {"prompt": "hi", "completion": "yo", "label": 5},
        "label",
        "a number, expected true or false",
    ),
    (
        "prefloop",
        {**VOTED, "votes": [{"annotator": "a", "choice": 2}]},
        "votes.0.choice",
        "0, 1 or 'tie'",
    ),
    (
        "prefloop",
        {**VOTED, "votes": [{"annotator": "a", "choice": True}]},
        "votes.0.choice",
        "0, 1 or 'tie'",
    ),
    (
        "prefloop",
        {**VOTED, "responses": [{"text": "yes"}]},
        "Comparison",
        "has 2 responses, found 1",
    ),
    (
        "prefloop",
        {**VOTED, "responses": [{"text": "a"}, {"text": "a "}]},
        "responses.1.text",
        "same text",
    ),
    (
        "prefloop",
        {**VOTED, "responses": [{"text": ""}, {"text": "a"}]},
        "responses.0.text",
        "is empty",
    ),
    (
        "prefloop",
        {**VOTED, "votes": [], "winner": 0},
        "winner",
        "seems to say which response is better; say it as votes",
    ),
    (
        "prefloop",
        {"prompt": [USER], "response": "yo"},
        "",
        "holds a demonstration, of which no comparison can be made",
    ),
]


@pytest.mark.parametrize(("layout", "row", "field", "problem"), BAD_PAIRS)
def test_a_bad_row_is_found_and_named(
    tmp_path: Path, layout: str, row: dict, field: str, problem: str
) -> None:
    good = {
        "kto": {"prompt": "hi", "completion": "yo", "label": True},
        "prefloop": VOTED,
        "trl_explicit": PAIR,
    }
    good["sharegpt_pairs"] = {
        "conversations": [USER],
        "chosen": BOT,
        "rejected": {**BOT, "content": "no"},
    }
    good["hh"] = {
        "chosen": hh("Human: a", "Assistant: b"),
        "rejected": hh("Human: a", "Assistant: c"),
    }
    good["trl_implicit"] = {"chosen": [USER, BOT], "rejected": [USER, {**BOT, "content": "no"}]}
    path = write(tmp_path / "x.jsonl", good[layout], row)
    load = load_ratings if layout == "kto" else load_comparisons
    checked = load(path, layout=layout, bad_rows="quarantine")
    (finding,) = checked.findings
    assert (finding.row, finding.field) == (2, field)
    assert problem in finding.problem
    assert str(finding).startswith(f"row 2, field '{field}': " if field else "row 2: ")
    assert checked.quarantine == tmp_path / "x.quarantine.jsonl"
    (entry,) = map(json.loads, checked.quarantine.read_text(encoding="utf-8").splitlines())
    assert entry == {"row": 2, "problem": finding.problem, "field": field, "raw": row}
    assert len(checked.records) == 1 and checked.rows_read == 2


def test_two_users_turns_in_a_row_are_no_fault(tmp_path: Path) -> None:
    (record,) = load_comparisons(
        write(tmp_path / "x.jsonl", {**PAIR, "prompt": [USER, USER]})
    ).records
    assert record.prompt == [Message("user", "hi")] * 2


def test_an_explicit_id_used_twice_is_a_finding(tmp_path: Path) -> None:
    path = write(
        tmp_path / "x.jsonl", {**PAIR, "id": "a"}, {**PAIR, "id": "b"}, {**PAIR, "id": "a"}
    )
    checked = load_comparisons(path, bad_rows="quarantine")
    assert checked.findings == [Finding(3, "a", "id", "'a' is already the id of row 1")]
    assert [record.id for record in checked.records] == ["a", "b"]


def test_an_error_counts_all_bad_rows_shows_five_and_says_what_to_do(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", PAIR, *[{**PAIR, "chosen": ""}] * 7)
    with pytest.raises(DataError) as error:
        load_comparisons(path)
    text = str(error.value)
    assert f"{path}: 7 of 8 rows cannot be used (layout trl_explicit)" in text
    assert (
        text.count("field 'chosen': is empty") == 5 and "row 2, " in text and "and 2 more" in text
    )
    assert "`data.bad_rows: quarantine`" in text and "the other 1" in text
    assert not list(tmp_path.glob("*quarantine*"))


@pytest.mark.parametrize("bad_rows", ["error", "quarantine"])
def test_a_file_without_one_good_row_is_an_error_in_both_modes(
    tmp_path: Path, bad_rows: str
) -> None:
    with pytest.raises(DataError, match="2 of 2 rows cannot be used"):
        load_comparisons(
            write(tmp_path / "x.jsonl", *[{**PAIR, "chosen": ""}] * 2), bad_rows=bad_rows
        )
    for content in (b"", b"\n \n", b"[]", b" [ ]\n"):
        (tmp_path / "empty.json").write_bytes(content)
        for layout in ("auto", "hh"):
            with pytest.raises(DataError, match=r"empty\.json is empty"):
                load_comparisons(tmp_path / "empty.json", bad_rows=bad_rows, layout=layout)


def test_lines_that_are_no_objects_are_quarantined_as_they_stand(tmp_path: Path) -> None:
    lines = [
        b"",
        b'{"prompt": "hi"',
        b'["prompt"]',
        b'{"prompt": "caf\xe9"}',
        b'{"prompt": NaN}',
        b"[" * 100_000,
    ]
    checked = load_prompts(
        write(tmp_path / "x.jsonl", {"prompt": "hi"}, *lines),
        bad_rows="quarantine",
        quarantine_dir=tmp_path / "bad",
    )
    assert [finding.row for finding in checked.findings] == [3, 4, 5, 6, 7]
    problems = [finding.problem for finding in checked.findings]
    assert problems[0].startswith("is not one line of JSON: Expecting ',' delimiter at column 16")
    assert problems[1] == "is a list, expected an object"
    assert problems[2].startswith("is not UTF-8 (byte 0xe9 at position 16)")
    assert "holds NaN, which is no JSON" in problems[3] and "nested too deeply" in problems[4]
    assert checked.quarantine == tmp_path / "bad" / "x.quarantine.jsonl"
    entries = [
        json.loads(line) for line in checked.quarantine.read_text(encoding="utf-8").splitlines()
    ]
    assert [entry["raw"] for entry in entries[:3]] == [
        '{"prompt": "hi"',
        ["prompt"],
        '{"prompt": "caf\\xe9"}',
    ]
    assert checked.rows_read == 6


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.json", b'[{"prompt": "hi"},\n {"prompt": "oops}]', "line 2, column 13 is not JSON"),
        ("x.json", b'[{"prompt": "hi"},\n', "line 2, column 1 is not JSON"),
        ("x.json", b'[{"prompt": "hi"}', "the file ends inside the array"),
        ("x.json", b'[{"prompt": "hi"},]', "Expecting value"),
        ("x.json", b'[{"prompt": "hi"}] {}', "more after the end"),
        ("x.json", b'[{"prompt": "h\xe9"}]', "not UTF-8"),
        ("x.jsonl", '{"prompt": "hi"}'.encode("utf-16"), "is UTF-16"),
        (
            "x.jsonl",
            b"hello\n",
            "not one of the first 1 rows can be read\n  row 1: is not one line of JSON",
        ),
        ("x.jsonl.gz", b'{"prompt": "hi"}', "not a gzip file although"),
        (
            "x.jsonl.gz",
            gzip.compress(b'{"prompt": "hi"}\n' * 50, mtime=0)[:-12],
            "broken or incomplete gzip",
        ),
        (
            "x.jsonl.gz",
            gzip.compress(b'{"prompt": "hi"}\n', mtime=0)[:-8] + bytes(8),
            "broken or incomplete gzip",
        ),
    ],
)
def test_a_file_that_cannot_be_read_to_its_end_is_an_error(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as error:
        load_prompts(tmp_path / name, bad_rows="quarantine")
    assert message in str(error.value) and name in str(error.value)


def test_a_missing_file_or_a_folder_is_an_error_that_helps(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", PAIR)
    with pytest.raises(DataError, match=r"no such file.*did you mean 'train.jsonl'"):
        load_prompts(tmp_path / "trian.jsonl")
    with pytest.raises(DataError, match="there is no folder"):
        load_prompts(tmp_path / "nowhere" / "train.jsonl")
    with pytest.raises(DataError, match="is a folder"):
        load_prompts(tmp_path)


def test_a_layout_that_lacks_what_is_asked_for_is_refused_with_those_that_have_it(
    tmp_path: Path,
) -> None:
    path = write(tmp_path / "x.jsonl", {"instruction": "hi", "output": "yo"})
    with pytest.raises(
        DataError, match=r"layout alpaca, which holds demonstrations: no comparison.*hh.*kto"
    ):
        load_comparisons(path)


def test_describe_is_one_line_with_what_was_left_out(tmp_path: Path) -> None:
    path = write(
        tmp_path / "t.jsonl",
        {**VOTED, "id": "a"},
        {**VOTED, "id": "b"},
        {"prompt": [USER], "response": ""},
    )
    checked = load_prompts(path, bad_rows="quarantine")
    assert (
        checked.describe()
        == "1 prompt from t.jsonl (prefloop: columns id, prompt, responses, votes, in 2 of the"
        " first 3 rows), 1 row quarantined in t.quarantine.jsonl (row 3, field 'response': is"
        " empty), 1 skipped: prompt seen before"
    )
    prompts = [Prompt(str(n), [Message("user", str(n))]) for n in range(240)]
    assert Checked(prompts, [], path, "hh", 240, None).describe() == "240 prompts from t.jsonl (hh)"


ASK = [Message("user", "hi")]


def comparison(*choices: object) -> Comparison:
    votes = [Vote(f"ann{n}", choice, why=f"because {n}") for n, choice in enumerate(choices)]
    return Comparison("c", ASK, [Response("yes"), Response("no")], votes, {"k": 1})


def rating(id: str, text: str, *values: str, prompt: list[Message] = ASK) -> Rating:
    return Rating(
        id, prompt, Response(text), [Thumb(f"ann{n}", value) for n, value in enumerate(values)]
    )


def test_the_demonstration_of_a_pair_is_the_response_most_votes_chose() -> None:
    skipped: Counter[str] = Counter()
    rows = [
        comparison(0),
        comparison(1, 1, 0),
        comparison("tie", 1),
        comparison(0, 1),
        comparison("tie"),
        comparison(),
    ]
    answers = [record.response for record in convert(rows, Demonstration, skipped)]
    assert answers == ["yes", "no", "no"]
    assert skipped == {"tied or without votes": 3}


def test_the_demonstrations_of_ratings_are_the_up_voted_ones() -> None:
    skipped: Counter[str] = Counter()
    rows = [
        rating("a", "A", "up"),
        rating("b", "B", "down"),
        rating("c", "C", "up", "down"),
        rating("d", "D"),
    ]
    assert [record.id for record in convert(rows, Demonstration, skipped)] == ["a"]
    assert skipped == {"not up-voted": 3}


def test_every_vote_of_a_pair_is_a_thumb_up_and_a_thumb_down_by_its_annotator() -> None:
    first, second = convert([comparison(0, "tie", 1)], Rating, Counter())
    assert (first.id, first.response.text, second.id, second.response.text) == (
        "c/0",
        "yes",
        "c/1",
        "no",
    )
    assert first.votes == [Thumb("ann0", "up", "because 0"), Thumb("ann2", "down", "because 2")]
    assert second.votes == [Thumb("ann0", "down", "because 0"), Thumb("ann2", "up", "because 2")]
    assert first.meta == second.meta == {"k": 1}


def test_thumbs_pair_up_within_a_prompt_and_every_response_is_used() -> None:
    elsewhere = [Message("user", "other")]
    rows = [
        rating("u1", "A", "up"),
        rating("d1", "X", "down"),
        rating("lonely", "L", "up", prompt=elsewhere),
        rating("d2", "Y", "down"),
        rating("d3", "Z", "down"),
        rating("u2", "B", "up"),
        rating("even", "E", "up", "down"),
    ]
    skipped: Counter[str] = Counter()
    pairs = list(convert(rows, Comparison, skipped))
    assert [pair.id for pair in pairs] == ["u1+d1", "u2+d2", "u1+d3"]
    assert [response.text for response in pairs[0].responses] == ["A", "X"]
    assert pairs[0].votes == [Vote("ann0", 0)]
    assert skipped == {"no opposite thumb for the same prompt": 1, "as many thumbs up as down": 1}


def test_an_annotator_votes_for_the_response_the_thumbs_favor() -> None:
    rows = [
        rating("u", "A", "up", "up", "down", "up"),
        rating("d", "X", "down", "up", "up", "down", "down"),
    ]
    rows[1] = Rating("d", ASK, Response("X"), [*rows[1].votes, Thumb("ann5", "down")])
    (pair,) = convert(rows, Comparison, Counter())
    assert {vote.annotator: vote.choice for vote in pair.votes} == {
        "ann0": 0,
        "ann1": "tie",
        "ann2": 1,
        "ann3": 0,
        "ann4": 0,
        "ann5": 0,
    }


def test_answers_that_prefloop_keeps_are_demonstrations_and_several_may_share_a_prompts_id(
    tmp_path: Path,
) -> None:
    row = {
        "id": "p1",
        "prompt": [USER],
        "meta": {"k": 1},
        "response": "yo",
        "finished": True,
        "tokens": 2,
    }
    path = write(
        tmp_path / "answers.jsonl",
        row,
        {**row, "response": "hey"},
        {**row, "id": "p2", "prompt": "ho"},
    )
    assert detect_layout(path) == "answers" and kind_of(path) == "demonstrations"
    found = load_demonstrations(path).records
    assert [(each.id, each.response) for each in found] == [
        ("p1", "yo"),
        ("p1-2", "hey"),
        ("p2", "yo"),
    ]
    assert found[0].meta == {"k": 1, "finished": True, "tokens": 2}
    path = write(tmp_path / "bad.jsonl", row, {**row, "id": "p3", "response": ""})
    with pytest.raises(DataError, match=r"row 2, field 'response': is empty"):
        load_demonstrations(path)


def test_one_text_up_voted_and_down_voted_makes_no_pair() -> None:
    skipped: Counter[str] = Counter()
    assert (
        list(convert([rating("u", "A", "up"), rating("d", "A ", "down")], Comparison, skipped))
        == []
    )
    assert skipped == {"same text up-voted and down-voted": 1}


@settings(deadline=None)
@given(
    st.lists(st.sampled_from([0, 1]), min_size=1, max_size=7).filter(
        lambda votes: 2 * sum(votes) != len(votes)
    )
)
def test_pair_to_thumbs_and_back_keeps_every_vote(choices: list[int]) -> None:
    before = comparison(*choices)
    (after,) = convert(comparison_to_ratings(before, Counter()), Comparison, Counter())
    wanted = before if 2 * sum(choices) < len(choices) else before.swap()
    assert (after.prompt, after.responses, after.votes, after.meta) == (
        ASK,
        wanted.responses,
        wanted.votes,
        {"k": 1},
    )
