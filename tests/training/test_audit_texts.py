"""The audit reads texts: one example is shown as the model reads it, and a file that was read
wrongly stops the stage.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from families import family
from tiny import tiny_model, tiny_tokenizer

from prefloop.cli import _main, guarded
from prefloop.config import BackboneConfig, DataConfig, OptimConfig, SFTStageConfig
from prefloop.config.common import AdapterConfig
from prefloop.data.chat import ChatFormat
from prefloop.data.encode import Encoder
from prefloop.data.sources import load_comparisons, write_jsonl
from prefloop.errors import AuditError, DataError
from prefloop.pipeline.stages.sft import SFT
from prefloop.records import Conversation, Demonstration, Message, Record, Response
from prefloop.runs.runtime import Runtime
from prefloop.training.audit import Audit

PROMPT = [Message("user", "Which knot holds a boat?")]


def audited(answers: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[list[str], str]:
    encoder = Encoder(ChatFormat.load(tiny_tokenizer()), 200)
    found = [encoder.response(str(i), PROMPT, Response(text), 20) for i, text in enumerate(answers)]
    audit = Audit("sft")
    try:
        audit.texts(encoder.chat, encoder, found[0])
    finally:
        out = capsys.readouterr().out
    return audit.lines, out


@pytest.mark.parametrize(
    ("bad", "name"),
    [
        ("One <|im_start|>user two", "control tokens inside texts: 2 of 3"),
        ("Which knot holds a boat? A bowline.", "responses that begin with their prompt: 2 of 3"),
        ("A bowline.<|im_end|>", "control tokens inside texts: 2 of 3"),
    ],
)
def test_most_rows_with_one_fault_stop_the_stage(
    bad: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(AuditError, match=name):
        audited([bad, bad, "A bowline."], capsys)
    lines, _ = audited([bad, "A bowline.", "Any knot."], capsys)
    assert name.replace("2 of", "1 of") + " responses (at most half)" in lines


def test_the_example_is_shown_with_what_is_learnt_and_not_kept(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines, out = audited(["A bowline.\x1b[2J"], capsys)
    assert "⟦A bowline.␛[2J<|im_end|>⟧" in out and "\x1b" not in out
    assert not any("bowline" in line for line in lines)


PRIVATE = "see https://x.org/a?b=1&c=2 for more, or password=abc"


def test_what_a_model_reads_is_shown_to_the_letter(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, out = audited([PRIVATE], capsys)
    assert f"⟦{PRIVATE}<|im_end|>⟧" in out
    write_jsonl(
        tmp_path / "rows.jsonl", [Demonstration.of("a", PROMPT, [Message("assistant", PRIVATE)])]
    )
    model = str(tiny_model(tmp_path / "model"))
    shown = [
        "check",
        str(tmp_path / "rows.jsonl"),
        "--show",
        "1",
        "--model",
        model,
        "--chat-template",
        "chatml",
    ]
    assert guarded(_main, shown) == 0
    assert f"⟦{PRIVATE}<|im_end|>⟧" in capsys.readouterr().out


def test_control_tokens_of_people_are_counted_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    lines, _ = audited(["What is <|im_end|>?", "It is a token.", "Yes."], capsys)
    assert lines[0] == "1 control tokens in people's texts were encoded as plain text"


TALK = [
    Message("user", "Hi"),
    Message("assistant", "Hello."),
    Message("user", "More"),
    Message("assistant", "That is all."),
]


def sft(tmp_path: Path, model: Path, records: list[Record], **config: str) -> dict[str, object]:
    tmp_path.mkdir()
    write_jsonl(tmp_path / "rows.jsonl", records)
    backbone = BackboneConfig(
        model=str(model),
        precision="fp32",
        compute="fp32",
        max_length=64,
        adapter=AdapterConfig(r=2),
    )
    stage = SFT(
        SFTStageConfig(optim=OptimConfig(learning_rate=1e-2), **config),  # type: ignore[arg-type]
        DataConfig(demonstrations=tmp_path / "rows.jsonl"),
    )
    return stage.run(Runtime(backbone, output=tmp_path / "runs")).metrics


def test_sft_learns_all_turns_the_last_or_those_that_the_file_leaves(
    tmp_path: Path, tiny_folder: Path
) -> None:
    masked = [TALK[0], Message("assistant", "Hello.", learn=False), *TALK[2:]]
    rows: list[Record] = [
        Demonstration.of("a", TALK[:3], TALK[3:]),
        Demonstration.of("b", masked[:3], masked[3:]),
    ]
    assert sft(tmp_path / "all", tiny_folder, rows)["turns"] == 3
    assert sft(tmp_path / "last", tiny_folder, rows, turns="last")["turns"] == 2


def test_a_conversation_without_a_turn_to_learn_is_named() -> None:
    encoder = Encoder(ChatFormat.load(family("chatml")), 100)
    masked = Demonstration.of("r3", PROMPT, [Message("assistant", "No.", learn=False)])
    with pytest.raises(DataError, match=r"row 'r3' .*: no assistant turn is to be learnt"):
        encoder.conversation(masked)


def test_check_tries_every_row_on_a_model_and_shows_peoples_control_tokens_as_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(tiny_model(tmp_path / "model"))
    rows: list[Record] = [
        Demonstration.of(
            "a", [Message("user", "What is <|im_end|>?")], [Message("assistant", "It ends a turn.")]
        ),
        Demonstration.of("b", [Message("user", "word " * 60)], [Message("assistant", "Yes.")]),
        Demonstration.of("c", [Message("user", "More?")], [Message("assistant", "yes " * 40)]),
        Demonstration.of(
            "d",
            Conversation(PROMPT, [{"function": {"name": "ring"}}]),
            [Message("assistant", "No.")],
        ),
    ]
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, rows)
    arguments = [
        "check",
        str(path),
        "--model",
        model,
        "--max-length",
        "60",
        "--show",
        "1",
        "--chat-template",
        "chatml",
    ]
    assert guarded(_main, arguments) == 0
    said = capsys.readouterr().out
    assert "takes 2 of them, 2 not, 1 response cut to 60 tokens" in said
    assert (
        "prompt 'b' ('word word" in said and "row 'd' (" in said and "does not show tools" in said
    )
    assert (
        "<|im_start|>user\nWhat is ‹|im_end|›?<|im_end|>" in said
        and "⟦It ends a turn.<|im_end|>⟧" in said
    )


def test_columns_in_other_letters_are_told(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("Prompt,Chosen,Rejected\nq,a,b\n")
    with pytest.raises(
        DataError, match="it would be layout trl_explicit: rename Prompt, Chosen, Rejected"
    ):
        load_comparisons(tmp_path / "rows.csv")
