"""The layouts preference data comes in: how each is recognised, and which reader makes records of its rows.

A reader takes a :class:`Row` and gives the record it holds, or several. What a loader was asked for is derived from that
in ``convert``, so a layout says nothing about who reads it. Published layouts come first and the first that fits is
taken: their columns are their own. Of the general ones every one that fits is counted, so that a file which could be read
in two ways is asked about.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from prefloop.data.layouts import general, own, published, rated
from prefloop.data.layouts.general import ANSWERS, PAIRS, THUMBS, has_prompt, has_turns, pair_columns, thumb_column
from prefloop.data.layouts.rated import Scored
from prefloop.data.prompts import CONVERSATIONS, TEXTS
from prefloop.data.row import Row
from prefloop.data.transcripts import is_hh
from prefloop.records import BestOf, Comparison, Demonstration, Prompt, Rating, Record

Columns = Mapping[str, Any]


@dataclass(frozen=True)
class Layout:
    """A layout: the keys to look for, the kinds of record a row can hold, how to recognise and how to read one."""

    name: str
    keys: str
    kinds: tuple[type, ...]
    matches: Callable[[Columns], bool]
    read: Callable[[Row], Record | list[Record] | Scored] | None
    tells: tuple[str, ...] = ()
    """The columns that tell it, of which a file has some; the words of ``keys`` unless given."""
    several: bool = False
    """Rows may share an id, which is then the prompt's."""
    joins: bool = False
    """Its rows are single answers with a number; neighbours with one prompt make comparisons."""
    way_out: str = ""
    """Of a layout that cannot be read: what to do."""

    def reason(self, row: Columns) -> str:
        """Why a row was taken for this layout."""
        words = self.tells or tuple(self.keys.replace(",", " ").split())
        found = [word for word in words if word in row]
        return f"columns {', '.join(found)}" if found else "as named"


def _has(*needed: str, without: tuple[str, ...] = ()) -> Callable[[Columns], bool]:
    return lambda row: all(key in row for key in needed) and not any(key in row for key in without)


def _paired(row: Columns) -> bool:
    return pair_columns(row) is not None and not own.is_best_of(row)


def _alone(row: Columns) -> bool:
    """No column holds a prompt, so the answers must."""
    return not has_prompt(row) and not any(key in row for key in CONVERSATIONS)


def _is_hh(row: Columns) -> bool:
    found = pair_columns(row)
    return found is not None and _alone(row) and any(is_hh(row[key]) for key in found)


def _is_implicit(row: Columns) -> bool:
    return _paired(row) and _alone(row) and not _is_hh(row)


def _asked(*keys: str) -> Callable[[Columns], bool]:
    """A pair beside one of ``keys``, which is the first column that could hold its prompt."""
    every = (*TEXTS, *CONVERSATIONS)
    return lambda row: _paired(row) and next((key for key in every if key in row), None) in keys


def _is_alpaca_pair(row: Columns) -> bool:
    return _asked("instruction")(row) or (
        "instruction" in row and pair_columns(row) is None and general.two_outputs(row)
    )


def _is_swift_pair(row: Columns) -> bool:
    if pair_columns(row) is not None:
        return False
    if "messages" in row:
        return "rejected_response" in row or "rejected_messages" in row
    return has_prompt(row) and "response" in row and "rejected_response" in row


def _is_thumb(row: Columns) -> bool:
    if thumb_column(row) is None or _paired(row) or "response_a" in row or "rejected_response" in row:
        return False
    turns = has_turns(row, *CONVERSATIONS)
    return turns or (has_prompt(row) and any(key in row for key in ANSWERS))


_UNRATED = ("chosen", "rejected", "responses", "response_a", "completions", "rejected_response")


def _demonstrates(prompt: tuple[str, ...], answer: tuple[str, ...]) -> Callable[[Columns], bool]:
    """One of ``prompt`` is the first column of a prompt and one of ``answer`` is there; nothing else is asked of the row."""
    every = (*TEXTS, "input")

    def fits(row: Columns) -> bool:
        if thumb_column(row) is not None or any(key in row for key in _UNRATED) or own.is_prefloop(row):
            return False
        first = next((key for key in every if key in row), None)
        return first in prompt and any(key in row for key in answer)

    return fits


_is_alpaca = _demonstrates(("instruction",), ("output",))
_is_completion = _demonstrates(("prompt",), ("completion",))
_is_query = _demonstrates(("query",), ("response",))
_is_answer_row = _has("id", "prompt", "response", "finished", "tokens")


def _is_response(row: Columns) -> bool:
    if _is_alpaca(row) or _is_completion(row) or _is_query(row) or _is_answer_row(row):
        return False
    if isinstance(row.get("output"), list):
        return False
    plain = _demonstrates(("prompt",), ("response", "output"))(row)
    # An 'answer' beside 'prompt' is what a scorer compares with, beside 'question' it is the answer.
    asked = _demonstrates(("question", "query", "instruction", "input"), ANSWERS)(row)
    return plain or asked


def _has_answer(row: Columns) -> bool:
    return any(key in row for key in (*_UNRATED, "response", "completion", "output", "chosen_response", "response_j"))


def _turns_alone(*keys: str) -> Callable[[Columns], bool]:
    """Turns in one of ``keys``, and no answer elsewhere. A prompt beside them may repeat a question of theirs."""

    def fits(row: Columns) -> bool:
        if _has_answer(row) or "rejected_messages" in row or thumb_column(row) is not None:
            return False
        found = [row[key] for key in keys if key in row]
        return any(map(general.talks, found)) or (bool(found) and not has_prompt(row))

    return fits


def _is_references(row: Columns) -> bool:
    return "prompt" in row and not _has_answer(row) and bool(row.get("references") or row.get("reference"))


def _is_prompt_only(row: Columns) -> bool:
    first = next((key for key in TEXTS if key in row), None)
    if first is None or _has_answer(row) or own.is_prefloop(row) or _is_references(row):
        return False
    if isinstance(row[first], dict) or ("answer" in row and first != "prompt"):
        return False
    if any(general.talks(row.get(key)) for key in CONVERSATIONS):
        return False
    return thumb_column(row) is None or not has_turns(row, *CONVERSATIONS)


_TURNS = (Prompt, Demonstration)
_PAIRS = (Comparison,)
_EVERY = (Prompt, Demonstration, Comparison, Rating, BestOf)
_PAIR_NAMES = tuple(name for names in PAIRS for name in names)

# Argilla's exports (data/argilla_rows.py) belong at the head of these: their columns beside `chosen` are the votes.
_PUBLISHED = (
    Layout(
        "openai_preferences",
        "input, preferred_output, non_preferred_output",
        _PAIRS,
        _has("preferred_output", "non_preferred_output"),
        published.read_openai,
    ),
    Layout(
        "helpsteer3",
        "context, response1, response2, overall_preference [individual_preference]",
        _PAIRS,
        _has("response1", "response2", "overall_preference"),
        published.read_helpsteer3,
    ),
    Layout(
        "helpsteer2_preference",
        "prompt, response_1, response_2, preference_strength",
        _PAIRS,
        _has("response_1", "response_2", "preference_strength"),
        published.read_helpsteer2_preference,
    ),
    Layout(
        "helpsteer",
        "prompt, response, helpfulness, correctness, coherence, complexity, verbosity",
        _PAIRS,
        rated.is_helpsteer,
        rated.read_helpsteer,
        joins=True,
    ),
    Layout(
        "ultrafeedback",
        "instruction, completions of {response, fine-grained_score | overall_score}",
        _PAIRS,
        rated.is_ultrafeedback,
        rated.read_ultrafeedback,
        tells=("instruction", "completions"),
    ),
    Layout(
        "nectar",
        "prompt, answers of {answer, rank}",
        _PAIRS,
        rated.is_nectar,
        rated.read_nectar,
        tells=("prompt", "answers"),
    ),
    Layout(
        "arena",
        "conversation_a, conversation_b | prompt, response_a, response_b; winner | winner_model_a, winner_model_b, winner_tie",
        _PAIRS,
        published.is_arena,
        published.read_arena,
        tells=(
            "prompt",
            "response_a",
            "response_b",
            "conversation_a",
            "conversation_b",
            "winner",
            "winner_model_a",
            "winner_model_b",
            "winner_tie",
        ),
    ),
    Layout(
        "safe_rlhf",
        "prompt, response_0, response_1, better_response_id",
        _PAIRS,
        _has("response_0", "response_1", "better_response_id"),
        published.read_safe_rlhf,
    ),
    Layout(
        "oasst_trees",
        "message_tree_id, prompt with replies",
        _PAIRS,
        rated.is_oasst_tree,
        rated.read_oasst_tree,
        tells=("message_tree_id", "prompt"),
    ),
    Layout(
        "shp",
        "history, human_ref_A, human_ref_B, labels",
        _PAIRS,
        _has("human_ref_A", "human_ref_B", "labels"),
        published.read_shp,
    ),
    Layout(
        "alpaca_eval",
        "instruction, output_1, output_2, preference",
        _PAIRS,
        _has("instruction", "output_1", "output_2"),
        published.read_alpaca_eval,
    ),
    Layout(
        "mt_bench_questions",
        "question_id, turns",
        (Prompt,),
        _has("question_id", "turns", without=("choices", "prompt")),
        published.read_mt_bench_question,
    ),
    Layout(
        "mt_bench_answers",
        "question_id, choices",
        (),
        _has("question_id", "choices"),
        None,
        way_out="answers stand in it without their questions. `prefloop judge` compares two such files; for training, add a column 'prompt' "
        "with each question, and 'response' with choices[0].turns[0]",
    ),
    Layout(
        "oasst_messages",
        "message_id, parent_id, text, role",
        (),
        _has("message_id", "text", "role"),
        None,
        way_out="it holds single messages of trees, one a row. Use the data set's trees, one a row (message_tree_id, prompt with replies)",
    ),
    Layout(
        "process_rewards",
        "prompt, completions, labels",
        (),
        _has("completions", "labels"),
        None,
        way_out="it labels the steps of an answer, which train a process reward model; prefloop's reward model rates whole answers. "
        "Give each whole answer a column 'label' of true or false beside 'prompt' and 'completion'",
    ),
)
_GENERAL = (
    Layout(
        "prefloop",
        "id, prompt + response | responses, votes",
        _EVERY,
        lambda row: own.is_prefloop(row) and not _is_answer_row(row),
        own.read_prefloop,
    ),
    Layout(
        "answers",
        "id, prompt, response, finished, tokens as `prefloop judge` keeps them",
        (Demonstration,),
        _is_answer_row,
        own.read_answer,
        several=True,
    ),
    Layout(
        "hh",
        "chosen, rejected as '\\n\\nHuman: … \\n\\nAssistant: …'",
        _PAIRS,
        _is_hh,
        general.read_hh,
        tells=_PAIR_NAMES,
    ),
    Layout(
        "trl_explicit",
        "prompt, chosen, rejected",
        _PAIRS,
        _asked("prompt"),
        general.read_pair,
        tells=("prompt", *_PAIR_NAMES),
    ),
    Layout(
        "judgments",
        "prompt, response_a, response_b, human (list of a | b | tie) | label",
        _PAIRS,
        lambda row: _has("prompt", "response_a", "response_b")(row) and ("human" in row or "label" in row),
        own.read_judgments,
    ),
    Layout(
        "best_of",
        "prompt, chosen, rejected as lists of texts | prompt, responses as texts, best | gold | scores",
        (BestOf,),
        own.is_best_of,
        own.read_best_of,
        tells=("prompt", "chosen", "rejected", "responses", *own.GOLD),
    ),
    Layout(
        "trl_implicit",
        "chosen, rejected as message lists",
        _PAIRS,
        _is_implicit,
        general.read_implicit,
        tells=_PAIR_NAMES,
    ),
    Layout(
        "alpaca_pairs",
        "instruction, chosen, rejected [+ input, system, history] | instruction, output as [chosen, rejected]",
        _PAIRS,
        _is_alpaca_pair,
        general.read_pair,
        tells=("instruction", "output", *_PAIR_NAMES),
    ),
    Layout(
        "question_pairs",
        "question | query, chosen, rejected [+ system]",
        _PAIRS,
        _asked("question", "query"),
        general.read_pair,
        tells=("question", "query", *_PAIR_NAMES),
    ),
    Layout(
        "sharegpt_pairs",
        "conversations, chosen, rejected",
        _PAIRS,
        _asked("conversations", "conversation"),
        general.read_pair,
        tells=("conversations", "conversation", *_PAIR_NAMES),
    ),
    Layout(
        "messages_pairs",
        "messages, chosen, rejected",
        _PAIRS,
        _asked("messages"),
        general.read_pair,
        tells=("messages", *_PAIR_NAMES),
    ),
    Layout(
        "swift_pairs",
        "messages | query, response; rejected_response | rejected_messages",
        _PAIRS,
        _is_swift_pair,
        general.read_swift_pair,
        tells=("messages", "rejected_messages", "rejected_response", *TEXTS, "response"),
    ),
    Layout(
        "kto",
        "prompt, completion | response | output | messages | conversations; label | kto_tag | thumb | desirable as true or false",
        (Rating,),
        _is_thumb,
        general.read_thumb,
        tells=(*TEXTS, *CONVERSATIONS, *ANSWERS, *THUMBS),
    ),
    Layout(
        "alpaca",
        "instruction, output [+ input, system, history]",
        (Demonstration,),
        lambda row: _is_alpaca(row) and not general.two_outputs(row),
        general.read_alpaca,
        tells=("instruction", "input", "output"),
    ),
    Layout(
        "sharegpt",
        "conversations of {from, value}",
        _TURNS,
        _turns_alone("conversations", "conversation"),
        general.read_conversations,
        tells=("conversations", "conversation"),
    ),
    Layout(
        "messages",
        "messages of {role, content}",
        _TURNS,
        _turns_alone("messages"),
        general.read_messages,
        tells=("messages",),
    ),
    Layout("prompt_completion", "prompt, completion", (Demonstration,), _is_completion, general.read_prompted),
    Layout(
        "swift",
        "query, response [+ history, system]",
        (Demonstration,),
        _is_query,
        general.read_query,
        tells=("query", "response", "history"),
    ),
    Layout(
        "prompt_response",
        "prompt | question | instruction | input, response | output | answer",
        (Demonstration,),
        _is_response,
        general.read_prompted,
        tells=(*TEXTS, "input", *ANSWERS),
    ),
    Layout("references", "prompt, reference | references", (Demonstration,), _is_references, own.read_references),
    Layout(
        "text",
        "text in a known template's markers",
        _TURNS,
        _has("text", without=(*TEXTS, *CONVERSATIONS, "message_id", "chosen")),
        general.read_text,
        tells=("text",),
    ),
    Layout(
        "prompt_only",
        "prompt | question | instruction | query",
        (Prompt,),
        _is_prompt_only,
        general.read_prompt,
        tells=TEXTS,
    ),
)
LAYOUTS: dict[str, Layout] = {layout.name: layout for layout in (*_PUBLISHED, *_GENERAL)}


def fitting(row: Columns) -> list[str]:
    """The layouts that a row fits: a published one alone, or every general one. Empty columns of turns do not count."""
    columns = {key: value for key, value in row.items() if key not in CONVERSATIONS or value not in ([], "")}
    for layout in _PUBLISHED:
        if layout.matches(columns):
            return [layout.name]
    return [layout.name for layout in _GENERAL if layout.matches(columns)]
