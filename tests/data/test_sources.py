"""Every layout is recognized and read into the same records; files come back as they were
written.
"""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefloop.data import files, json_rows
from prefloop.data.layouts import LAYOUTS
from prefloop.data.sources import (
    detect_layout,
    load_comparisons,
    load_demonstrations,
    load_prompts,
    load_ratings,
    write_jsonl,
)
from prefloop.data.transcripts import parse_hh
from prefloop.errors import ConfigError, DataError
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

PROMPT = [{"role": "user", "content": "Why is the sky blue?"}]
TURNS = [{"from": "human", "value": "Why is the sky blue?"}]
GOOD, BAD = "Rayleigh scattering.", "Nobody knows."
GPT = [{"from": "gpt", "value": text} for text in (GOOD, BAD)]

PAIRS = {
    "prefloop": {
        "id": "c1",
        "prompt": PROMPT,
        "responses": [{"text": GOOD}, {"text": BAD}],
        "votes": [{"annotator": "ann", "choice": 0}],
    },
    "hh": {
        "chosen": f"\n\nHuman: Why is the sky blue?\n\nAssistant: {GOOD}",
        "rejected": f"\n\nHuman: Why is the sky blue?\n\nAssistant: {BAD}",
    },
    "trl_explicit": {"prompt": PROMPT[0]["content"], "chosen": GOOD, "rejected": BAD},
    "trl_implicit": {
        "chosen": [*PROMPT, {"role": "assistant", "content": GOOD}],
        "rejected": [*PROMPT, {"role": "assistant", "content": BAD}],
    },
    "sharegpt_pairs": {"conversations": TURNS, "chosen": GPT[0], "rejected": GPT[1]},
}
ANSWERS = {
    "prefloop": {"id": "d1", "prompt": PROMPT, "response": GOOD},
    "alpaca": {"instruction": "Why is the sky", "input": "blue?", "output": GOOD},
    "sharegpt": {"conversations": [*TURNS, GPT[0]]},
    "prompt_completion": {"prompt": PROMPT, "completion": [{"role": "assistant", "content": GOOD}]},
    "messages": {"messages": [*PROMPT, {"role": "assistant", "content": GOOD}]},
}
THUMBS = {
    "prompt, completion": {"prompt": PROMPT[0]["content"], "completion": GOOD, "label": False},
    "messages": {"messages": [*PROMPT, {"role": "assistant", "content": GOOD}], "label": False},
    "conversations": {"conversations": [*TURNS, GPT[0]], "label": False},
}


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def shared_data() -> Path:
    folder = Path(__file__).parents[3] / "shared/data"
    if not folder.is_dir():
        pytest.skip("the shared data folder is not here")
    return folder


@pytest.mark.parametrize("layout", PAIRS)
def test_every_pair_layout_gives_the_same_comparison(tmp_path: Path, layout: str) -> None:
    path = write(tmp_path / "train.jsonl", PAIRS[layout])
    assert detect_layout(path) == layout
    checked = load_comparisons(path)
    (record,) = checked.records
    assert (checked.layout, checked.findings, checked.rows_read, checked.quarantine) == (
        layout,
        [],
        1,
        None,
    )
    assert record.prompt == [Message("user", "Why is the sky blue?")]
    assert [response.text for response in record.responses] == [GOOD, BAD]
    annotator = "ann" if layout == "prefloop" else "file:train.jsonl"
    assert record.votes == [Vote(annotator, 0)]
    assert record.meta == {}


@pytest.mark.parametrize("layout", ANSWERS)
def test_every_answer_layout_gives_the_same_demonstration(tmp_path: Path, layout: str) -> None:
    path = write(tmp_path / "sft.json", ANSWERS[layout])
    assert detect_layout(path) == layout
    (record,) = load_demonstrations(path).records
    separator = "\n" if layout == "alpaca" else " "
    assert record.prompt == [Message("user", f"Why is the sky{separator}blue?")]
    assert record.response == GOOD


@pytest.mark.parametrize("keys", THUMBS)
def test_every_kto_layout_gives_a_thumb_by_the_file(tmp_path: Path, keys: str) -> None:
    path = write(tmp_path / "kto.jsonl", THUMBS[keys], {**THUMBS[keys], "label": True})
    assert detect_layout(path) == "kto"
    down, up = load_ratings(path).records
    assert (down.prompt, down.response.text) == ([Message("user", "Why is the sky blue?")], GOOD)
    assert (down.votes, up.votes) == (
        [Thumb("file:kto.jsonl", "down")],
        [Thumb("file:kto.jsonl", "up")],
    )


def test_system_and_history_of_alpaca_come_before_the_instruction(tmp_path: Path) -> None:
    row = {
        "instruction": "And you?",
        "input": "",
        "output": "Well.",
        "system": "Be kind.",
        "history": [["Hi", "Hello"]],
    }
    (record,) = load_demonstrations(write(tmp_path / "a.jsonl", row)).records
    turns = [("system", "Be kind."), ("user", "Hi"), ("assistant", "Hello"), ("user", "And you?")]
    assert [(message.role, message.content) for message in record.prompt] == turns


def test_a_system_text_beside_the_turns_is_the_first_message(tmp_path: Path) -> None:
    (record,) = load_comparisons(
        write(tmp_path / "a.jsonl", {**PAIRS["sharegpt_pairs"], "system": "Be kind."})
    ).records
    assert record.prompt[0] == Message("system", "Be kind.")


def test_explicit_pairs_may_repeat_the_prompt_in_each_response(tmp_path: Path) -> None:
    row = PAIRS["trl_implicit"] | {
        "prompt": "Why is the sky blue?",
        "score_chosen": 8.5,
        "messages": [],
    }
    (record,) = load_comparisons(write(tmp_path / "a.jsonl", row)).records
    assert [response.text for response in record.responses] == [GOOD, BAD]
    assert record.meta == {"score_chosen": 8.5}


def test_a_prompt_in_hh_text_becomes_turns_not_one_message(tmp_path: Path) -> None:
    row = {
        "prompt": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: And?\n\nAssistant:",
        "chosen": " A",
        "rejected": " B",
    }
    (record,) = load_comparisons(write(tmp_path / "a.jsonl", row)).records
    assert [message.content for message in record.prompt] == ["Hi", "Hello", "And?"]


def test_unnamed_columns_of_a_prompt_stay_in_meta_for_its_scorer(tmp_path: Path) -> None:
    path = write(
        tmp_path / "math.jsonl", {"id": 7, "prompt": "1+1?", "answer": "2", "meta": {"level": 1}}
    )
    (record,) = load_prompts(path).records
    assert record == Prompt("7", [Message("user", "1+1?")], {"answer": "2", "level": 1})


def test_prompts_are_read_out_of_any_layout_and_kept_once(tmp_path: Path) -> None:
    for row in (
        *PAIRS.values(),
        *THUMBS.values(),
        ANSWERS["messages"],
        {"messages": PROMPT},
        {"prompt": PROMPT},
    ):
        checked = load_prompts(
            write(tmp_path / "any.jsonl", row, {k: v for k, v in row.items() if k != "id"})
        )
        assert [prompt.prompt for prompt in checked.records] == [
            [Message("user", "Why is the sky blue?")]
        ]
        assert checked.skipped == {"prompt seen before": 1}


def test_a_bom_gzip_and_a_json_array_change_nothing(tmp_path: Path) -> None:
    rows = [{"prompt": f"{n} \u2028 ü"} for n in range(5)]
    plain = write(tmp_path / "x.jsonl", *rows)
    texts = [prompt.prompt for prompt in load_prompts(plain).records]
    variants = {
        "bom.jsonl": b"\xef\xbb\xbf" + plain.read_bytes(),
        "crlf.jsonl": plain.read_bytes().replace(b"\n", b"\r\n\r\n"),
        "x.jsonl.gz": gzip.compress(plain.read_bytes()),
        "x.json": json.dumps(rows, indent=2, ensure_ascii=False).encode(),
        "flat.json.gz": gzip.compress(b" " + json.dumps(rows).encode()),
    }
    for name, content in variants.items():
        (tmp_path / name).write_bytes(content)
        assert [prompt.prompt for prompt in load_prompts(tmp_path / name).records] == texts, name


@pytest.mark.parametrize("chunk", [1, 3, 16, 1000])
def test_an_array_reads_the_same_in_any_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(json_rows, "_CHUNK", chunk)
    values = [
        {"a": 'q"\\ü\n]', "b": [1.5e10, -12, None, True], "c": None},
        1234567,
        {},
        "x" * 50,
        -0.25,
    ]
    (tmp_path / "x.json").write_text(json.dumps(values, indent=1), encoding="utf-8")
    rows = list(files.read_rows(tmp_path / "x.json"))
    assert [row.value for row in rows] == [{key: values[0][key] for key in "ab"}, *values[1:]]
    assert [row.number for row in rows if row.problem] == [2, 4, 5]


def test_ids_are_derived_from_the_row_and_repeats_are_numbered(tmp_path: Path) -> None:
    first, again, other = (
        PAIRS["hh"],
        dict(reversed(PAIRS["hh"].items())),
        {**PAIRS["hh"], "note": 1},
    )
    ids = [
        record.id
        for record in load_comparisons(
            write(tmp_path / "t.jsonl", first, again, other, first)
        ).records
    ]
    assert re.fullmatch(r"t-[0-9a-f]{8}", ids[0]) and re.fullmatch(r"t-[0-9a-f]{8}", ids[2])
    assert ids[1] == ids[0] + "-2" and ids[3] == ids[0] + "-3" and ids[2] != ids[0]
    moved = write(tmp_path / "t.jsonl.tmp", other, first).rename(tmp_path / "t.jsonl")
    assert [record.id for record in load_comparisons(moved).records] == [ids[2], ids[0]]


def test_limit_takes_the_first_good_records_and_reads_no_further(tmp_path: Path) -> None:
    path = write(
        tmp_path / "x.jsonl", *({"prompt": str(n)} for n in range(30)), ["not", "an", "object"]
    )
    checked = load_prompts(path, limit=3)
    assert [prompt.prompt[0].content for prompt in checked.records] == ["0", "1", "2"]
    assert checked.rows_read == 3
    assert (
        len(load_ratings(write(tmp_path / "p.jsonl", PAIRS["hh"], PAIRS["hh"]), limit=3).records)
        == 3
    )


def test_an_unknown_layout_is_reported_with_the_keys_and_every_known_layout(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", {"riddle": "?", "solution": "!"})
    with pytest.raises(DataError, match=r"no known layout.*riddle, solution") as error:
        load_prompts(path)
    assert all(f"  {name}: " in str(error.value) for name in LAYOUTS)


def test_an_ambiguous_file_must_be_given_its_layout_by_name(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", ANSWERS["messages"] | {"conversations": [*TURNS, GPT[1]]})
    with pytest.raises(DataError, match="sharegpt and messages equally well"):
        detect_layout(path)
    assert load_demonstrations(path, layout="messages").records[0].response == GOOD
    assert load_demonstrations(path, layout="sharegpt").records[0].response == BAD


def test_wrong_options_are_configuration_errors(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", ANSWERS["alpaca"])
    with pytest.raises(ConfigError, match="did you mean 'alpaca'"):
        load_prompts(path, layout="alpacca")
    with pytest.raises(ConfigError, match="did you mean 'quarantine'"):
        load_prompts(path, bad_rows="quarantin")
    with pytest.raises(ConfigError, match="at least 1"):
        load_prompts(path, limit=0)


TEXT = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1
).filter(str.strip)
USER = st.builds(Message, st.just("user"), TEXT)
PROMPTS = st.lists(
    st.builds(Message, st.sampled_from(["system", "user", "assistant", "tool"]), TEXT), max_size=3
)
CONVERSATIONS = st.builds(lambda before, last: [*before, last], PROMPTS, USER)
META = st.dictionaries(TEXT, st.booleans() | st.integers() | TEXT | st.lists(TEXT), max_size=2)
VOTES = st.lists(
    st.builds(
        Vote, TEXT, st.sampled_from([0, 1, "tie"]), st.none() | st.floats(0, 1), st.none() | TEXT
    )
)
RESPONSES = st.builds(Response, TEXT, st.text("abc"), META)
THUMB_LISTS = st.lists(st.builds(Thumb, TEXT, st.sampled_from(["up", "down"])))
TWO_RESPONSES = st.lists(
    RESPONSES, min_size=2, max_size=2, unique_by=lambda response: response.text.strip()
)
RECORDS = {
    load_prompts: st.builds(Prompt, TEXT, CONVERSATIONS, META),
    load_demonstrations: st.builds(Demonstration, TEXT, CONVERSATIONS, TEXT, META),
    load_comparisons: st.builds(Comparison, TEXT, CONVERSATIONS, TWO_RESPONSES, VOTES, META),
    load_ratings: st.builds(Rating, TEXT, CONVERSATIONS, RESPONSES, THUMB_LISTS, META),
}


@pytest.mark.slow
@pytest.mark.parametrize("load", RECORDS)
@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(data=st.data(), name=st.sampled_from(["r.jsonl", "r.jsonl.gz"]))
def test_what_was_written_is_what_is_loaded(
    tmp_path: Path, load, data: st.DataObject, name: str
) -> None:
    unique = (
        (lambda record: str(record.prompt)) if load is load_prompts else (lambda record: record.id)
    )
    records = data.draw(
        st.lists(
            RECORDS[load], min_size=1, max_size=4, unique_by=(unique, lambda record: record.id)
        )
    )
    write_jsonl(tmp_path / name, records)
    checked = load(tmp_path / name)
    assert (checked.layout, checked.records) == ("prefloop", records)


HH_TEXT = TEXT.map(str.strip).filter(lambda text: not re.search(r"\n\n(Human|Assistant):", text))


@settings(deadline=None)
@given(
    st.lists(
        st.builds(Message, st.sampled_from(["user", "assistant"]), HH_TEXT), min_size=1, max_size=6
    )
)
def test_hh_text_parses_to_the_turns_it_was_made_of(turns: list[Message]) -> None:
    speaker = {"user": "Human", "assistant": "Assistant"}
    assert (
        parse_hh("".join(f"\n\n{speaker[turn.role]}: {turn.content}" for turn in turns), "chosen")
        == turns
    )


def test_writing_is_atomic_and_the_same_records_give_the_same_bytes(tmp_path: Path) -> None:
    path, good = tmp_path / "new" / "x.jsonl.gz", Prompt("ü", [Message("user", "Grüße")])
    write_jsonl(path, [good])
    before = path.read_bytes()
    assert "Grüße" in gzip.decompress(before).decode("utf-8")
    with pytest.raises(DataError, match="prompt 'b' cannot be written"):
        write_jsonl(path, [good, Prompt("b", [Message("user", "x")], {"n": float("nan")})])
    assert path.read_bytes() == before
    write_jsonl(path, [good])
    assert path.read_bytes() == before
    with pytest.raises(DataError, match="cannot write"):
        write_jsonl(path / "inside_a_file.jsonl", [good])
    assert [file.name for file in path.parent.iterdir()] == ["x.jsonl.gz"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hh_helpful_train", "hh_harmless_multiturn"])
def test_raw_hh_text_gives_the_same_pairs_as_its_message_lists(
    shared_data: Path, tmp_path: Path, name: str
) -> None:
    parsed = load_comparisons(shared_data / f"{name}.jsonl.gz")
    assert (parsed.layout, parsed.findings) == ("trl_explicit", [])
    with gzip.open(shared_data / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
        raw = [
            {key: row["raw_" + key] for key in ("chosen", "rejected")}
            for row in map(json.loads, lines)
        ]
    from_text = load_comparisons(write(tmp_path / f"{name}.jsonl", *raw))
    assert (from_text.layout, from_text.findings) == ("hh", [])
    assert len(from_text.records) == len(raw) == (6000 if name == "hh_helpful_train" else 1000)
    for ours, theirs in zip(from_text.records, parsed.records, strict=True):
        assert ours.prompt == theirs.prompt
        assert [response.text for response in ours.responses] == [
            response.text for response in theirs.responses
        ]


@pytest.mark.parametrize(
    ("name", "load", "layout", "count"),
    [
        ("llamafactory_alpaca_en_demo", load_demonstrations, "alpaca", 999),
        ("llamafactory_dpo_en_demo", load_comparisons, "sharegpt_pairs", 300),
        ("llamafactory_kto_en_demo", load_ratings, "kto", 300),
    ],
)
def test_llamafactory_files_load_whole(
    shared_data: Path, name: str, load, layout: str, count: int
) -> None:
    checked = load(shared_data / f"{name}.jsonl.gz")
    assert (checked.layout, len(checked.records), checked.findings) == (layout, count, [])
