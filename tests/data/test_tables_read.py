"""What CSV, pandas and annotation tools make of rows: lists as text, missing cells, columns for
rows.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from layout_rows import ASK, BAD, GOOD, MORE, NEXT, TOOL, bot, user
from test_cases_kinds import PAIR, PLAIN, load, plain, refused, write

from prefloop.data.sources import kind_of, load_comparisons, load_demonstrations
from prefloop.errors import DataError
from prefloop.records import Message

TALK = [user(ASK), bot(GOOD), user(NEXT), bot(MORE)]


def csv(folder: Path, text: str) -> Path:
    (folder / "f.csv").write_text(text, encoding="utf-8")
    return folder / "f.csv"


def why(path: Path) -> str:
    with pytest.raises(DataError) as error:
        load_comparisons(path)
    return str(error.value)


@pytest.mark.parametrize("first", ["", "sep=;\n", '"sep=;"\r\n', "\ufeffsep=;\n"])
def test_the_sign_between_cells_is_told_by_the_first_line(tmp_path: Path, first: str) -> None:
    path = csv(tmp_path, f"{first}prompt;chosen;rejected\n{ASK};{GOOD};{BAD}\n")
    assert plain(load_comparisons(path).records[0])


def test_bars_between_cells_are_seen(tmp_path: Path) -> None:
    assert plain(
        load_comparisons(csv(tmp_path, f"prompt|chosen|rejected\n{ASK}|{GOOD}|{BAD}\n")).records[0]
    )


@pytest.mark.parametrize("word", ["nan", "NaN", "None", "<NA>"])
def test_what_pandas_writes_for_a_missing_text_is_no_text(tmp_path: Path, word: str) -> None:
    head = f"prompt,chosen,rejected\n{ASK},{GOOD.replace(',', ';')},{BAD}\n"
    assert f"row 2, field 'rejected': is '{word}'" in why(csv(tmp_path, f"{head}x,y,{word}\n"))
    assert f"row 2, field 'prompt': is '{word}'" in why(csv(tmp_path, f"{head}{word},y,x\n"))
    assert load(tmp_path, PAIR | {"rejected": word}).records[0].responses[1].text == word


def test_lists_that_pandas_wrote_are_read(tmp_path: Path) -> None:
    path = csv(tmp_path, "prompt,response_a,response_b,winner\n['q?'],['a'],\"['b']\",model_a\n")
    record = load_comparisons(path).records[0]
    assert list(record.prompt) == [Message("user", "q?")] and [
        r.text for r in record.responses
    ] == ["a", "b"]
    numpy = csv(
        tmp_path, "prompt,response_a,response_b,winner\n['q?' 'r?'],['a' 'b'],['c' 'd'],model_a\n"
    )
    assert "row 1, field 'prompt': looks like a list of texts written as a string" in why(numpy)


@pytest.mark.parametrize("spell", [json.dumps, repr])
def test_a_conversation_a_history_and_tools_are_read_as_json_or_repr(
    tmp_path: Path, spell: Any
) -> None:
    battle = {
        "conversation_a": spell(TALK),
        "conversation_b": spell([*TALK[:3], bot(BAD)]),
        "winner": "model_a",
    }
    assert [turn.content for turn in load(tmp_path, battle).records[0].prompt] == [ASK, GOOD, NEXT]
    for before in ([[NEXT, MORE]], [user(NEXT), bot(MORE)]):
        record = load(tmp_path, {"query": ASK, "response": GOOD, "history": spell(before)}).records[
            0
        ]
        assert [turn.content for turn in record.prompt] == [NEXT, MORE, ASK]
    assert (
        list(
            load(tmp_path, {"query": ASK, "response": GOOD, "history": spell([])}).records[0].prompt
        )
        == PLAIN
    )
    offered = load(tmp_path, {"prompt": ASK, "response": GOOD, "tools": spell([TOOL])}).records[0]
    assert offered.prompt.tools == [TOOL]
    for one in (bot(GOOD), {"from": "gpt", "value": GOOD}):
        assert plain(load(tmp_path, PAIR | {"chosen": spell(one)}).records[0])


def test_texts_in_the_place_of_objects_are_shown(tmp_path: Path) -> None:
    battle = {"conversation_a": TALK, "conversation_b": [*TALK[:3], bot(BAD)], "winner": "model_a"}
    assert (
        "row 2, field 'conversation_a': is text that spells no list of messages ('Hi')"
        in refused(tmp_path, battle, battle | {"conversation_a": "Hi"})
    )
    assert (
        "row 2, field 'tools.0': is the text 'calculator', expected a tool's JSON schema"
        in refused(tmp_path, PAIR, PAIR | {"tools": ["calculator"]})
    )


@pytest.mark.parametrize("turn", [1, 1.0, "1"])
def test_the_judged_turn_is_read_as_any_number(tmp_path: Path, turn: Any) -> None:
    other = [user(ASK), bot(BAD), user(NEXT), bot(BAD)]
    row = {"conversation_a": TALK, "conversation_b": other, "winner": "model_a", "turn": turn}
    assert plain_turns(load(tmp_path, row).records[0]) == [GOOD, BAD]


def plain_turns(record: Any) -> list[str]:
    assert list(record.prompt) == PLAIN
    return [response.text for response in record.responses]


def test_a_number_that_is_none_is_named_with_its_field(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    for value in ("NaN", "Infinity", "-Infinity"):
        row = (
            '{"prompt": "q", "chosen": "NaN", "rejected": "b", "scores": {"toxic": [0,'
            f" {value}]}}}}"
        )
        path.write_text(json.dumps(PAIR) + "\n" + row + "\n", encoding="utf-8")
        said = (
            f"row 2: field 'scores.toxic.1' holds {value}, which is no JSON: write null, or leave"
            " the key out"
        )
        assert said in why(path)


def test_one_annotated_row_is_no_file_of_annotations(tmp_path: Path) -> None:
    for row in (
        {"id": 1, "data": {"prompt": ASK}, "annotations": [{"result": []}]},
        {"id": "t", "input": {"messages": []}, "scores": [{"name": "user", "value": 0}]},
    ):
        path = write(tmp_path, row)
        with pytest.raises(DataError, match="fit no known layout"):
            kind_of(path)


@pytest.mark.parametrize("shape", ["lists", "by row number"])
def test_columns_for_rows_are_refused_with_the_command_that_makes_rows(
    tmp_path: Path, shape: str
) -> None:
    columns: dict[str, Any] = {
        key: [value, f"{value} {n}"] for n, (key, value) in enumerate(PAIR.items())
    }
    if shape != "lists":
        columns = {key: dict(enumerate(values)) for key, values in columns.items()}
    path = write(tmp_path, columns)
    said = why(path)
    assert "holds columns and not rows; make rows of it: jq -c '(.prompt|keys_unsorted[])" in said
    if shutil.which("jq"):
        command = said[said.index("jq -c") :].partition(" > ")[0]
        made = subprocess.run(
            command, shell=True, check=True, capture_output=True, text=True
        ).stdout
        assert json.loads(made.splitlines()[0]) == PAIR


def test_errors_of_tables_do_not_speak_of_json(tmp_path: Path) -> None:
    said = why(csv(tmp_path, "prompt,chosen,rejected\na,b\n"))
    assert "not one of the first 1 rows can be read" in said and "JSON" not in said
    path = csv(tmp_path, f"query,response\n{ASK},None of them\n")
    assert load_demonstrations(path).records[0].response == "None of them"
