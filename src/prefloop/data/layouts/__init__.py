"""The layouts in which preference data comes: how each is recognized, and which reader turns its
rows into records.

A reader takes a :class:`Row` and returns its record, or several. ``convert`` makes of that record
what a loader was asked for, so a layout knows nothing about who reads it. Published layouts come
first, and the first that fits is taken, since their columns are unique. Of the general layouts all
that fit are counted, so that the user is asked about a file which could be read in two ways.
"""

from __future__ import annotations

from prefloop.data import argilla_rows, judged
from prefloop.data.layouts import (
    choices,
    compared,
    general,
    own,
    published,
    rated,
    recognize,
    written,
)
from prefloop.data.layouts.general import PAIRS
from prefloop.data.layouts.recognize import Columns, Layout
from prefloop.data.prompts import ANSWERS, CONVERSATIONS, TEXTS
from prefloop.records import BestOf, Comparison, Demonstration, Prompt, Rating

__all__ = ["LAYOUTS", "Layout", "fitting"]

_TURNS = (Prompt, Demonstration)
_PAIRS = (Comparison,)
_EVERY = (Prompt, Demonstration, Comparison, Rating, BestOf)
_PAIR_NAMES = tuple(name for names in PAIRS for name in names)

_PUBLISHED = (
    # First of all, because the columns next to their `chosen` are the votes.
    Layout(
        "argilla",
        "fields, responses | QUESTION.responses, QUESTION.responses.users,"
        " QUESTION.responses.status",
        (Comparison, Rating, Prompt),
        argilla_rows.matches,
        published.read_argilla,
        tells=("fields", "responses", "_server_id", "status"),
    ),
    Layout(
        "openai_preferences",
        "input, preferred_output, non_preferred_output",
        _PAIRS,
        recognize.has("preferred_output", "non_preferred_output"),
        published.read_openai,
    ),
    Layout(
        "helpsteer3",
        "context, response1, response2, overall_preference [individual_preference]",
        _PAIRS,
        recognize.has("response1", "response2", "overall_preference"),
        published.read_helpsteer3,
    ),
    Layout(
        "helpsteer2_preference",
        "prompt, response_1, response_2, preference_strength",
        _PAIRS,
        recognize.has("response_1", "response_2", "preference_strength"),
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
        "scored",
        "prompt, responses | answers | completions | candidates of {text, score | rating | reward |"
        " rank}",
        _PAIRS,
        rated.is_scored,
        rated.read_scored,
        tells=("prompt", "question", "instruction", *rated.LISTS),
    ),
    Layout(
        "stack_exchange",
        "question, answers of {text, pm_score}",
        _PAIRS,
        compared.is_stack_exchange,
        compared.read_stack_exchange,
        tells=("question", "answers"),
    ),
    Layout(
        "rated_lists",
        "prompt, generations | responses | completions | answers as texts, rating | ratings |"
        " scores as numbers",
        _PAIRS,
        compared.is_listed,
        compared.read_listed,
        tells=(
            *TEXTS,
            "input",
            "generations",
            "responses",
            "completions",
            "answers",
            "rating",
            "ratings",
            "scores",
        ),
    ),
    Layout(
        "webgpt",
        "question of {full_text}, answer_0, answer_1, score_0, score_1",
        _PAIRS,
        compared.is_webgpt,
        compared.read_webgpt,
        tells=("question", "answer_0", "answer_1", "score_0", "score_1"),
    ),
    Layout(
        "summarize_from_feedback",
        "info, summaries, choice",
        _PAIRS,
        compared.is_summaries,
        compared.read_summaries,
    ),
    Layout(
        "xlam",
        "query, tools, answers as calls",
        (Demonstration,),
        compared.is_xlam,
        compared.read_xlam,
    ),
    Layout(
        "arena",
        "conversation_a, conversation_b | prompt, response_a, response_b; winner | winner_model_a,"
        " winner_model_b, winner_tie",
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
        recognize.has("response_0", "response_1", "better_response_id"),
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
        recognize.has("human_ref_A", "human_ref_B", "labels"),
        published.read_shp,
    ),
    Layout(
        "alpaca_eval",
        "instruction, output_1, output_2, preference",
        _PAIRS,
        recognize.has("instruction", "output_1", "output_2"),
        published.read_alpaca_eval,
    ),
    Layout(
        "mt_bench_questions",
        "question_id, turns",
        (Prompt,),
        recognize.has("question_id", "turns", without=("choices", "prompt")),
        published.read_mt_bench_question,
    ),
    Layout(
        "mt_bench_answers",
        "question_id, choices",
        (),
        recognize.has("question_id", "choices"),
        None,
        way_out=(
            "answers stand in it without their questions. `prefloop judge` compares two such files"
            " with --prompts QUESTIONS; to train on them, add a column 'prompt' with the question"
            " and 'response' with choices[0].turns[0]"
        ),
    ),
    Layout(
        "oasst_messages",
        "message_id, parent_id, text, role",
        (),
        recognize.has("message_id", "text", "role"),
        None,
        way_out=(
            "it holds single messages of trees, one a row. Use the data set's trees, one a row"
            " (message_tree_id, prompt with replies)"
        ),
    ),
    Layout(
        "process_rewards",
        "prompt, completions, labels",
        (),
        recognize.has("completions", "labels"),
        None,
        way_out=(
            "it labels the steps of an answer, which train a process reward model; prefloop's"
            " reward model rates whole answers. Give each whole answer a column 'label' of true or"
            " false next to 'prompt' and 'completion'"
        ),
    ),
    Layout(
        "graded",
        "prompt and answer, rating | feedback as a number",
        (),
        recognize.is_graded,
        None,
        tells=judged.SCALES,
        way_out=f"its numbers grade single answers, and {judged.THRESHOLD}",
    ),
)
_GENERAL = (
    Layout(
        "prefloop",
        "id, prompt + response | responses, votes",
        _EVERY,
        lambda row: written.is_prefloop(row) and not recognize.is_answer_row(row),
        written.read_prefloop,
    ),
    Layout(
        "answers",
        "id, prompt, response, finished, tokens as `prefloop judge` keeps them",
        (Demonstration,),
        recognize.is_answer_row,
        own.read_answer,
        several=True,
    ),
    Layout(
        "hh",
        "chosen, rejected as '\\n\\nHuman: … \\n\\nAssistant: …'",
        _PAIRS,
        recognize.is_hh,
        general.read_hh,
        tells=_PAIR_NAMES,
    ),
    Layout(
        "trl_explicit",
        "prompt, chosen, rejected",
        _PAIRS,
        recognize.asked("prompt"),
        general.read_pair,
        tells=("prompt", *_PAIR_NAMES),
    ),
    Layout(
        "judgments",
        "prompt, response_a, response_b (or answer_1, answer_2 …), human (list of a | b | tie) |"
        " label | winner | preferred …",
        _PAIRS,
        choices.is_judgment,
        choices.read_judgments,
        tells=(*TEXTS, *(name for pair in choices.SIDES for name in pair), *choices.VERDICTS),
    ),
    Layout(
        "best_of",
        "prompt, chosen, rejected as lists of texts | prompt, responses as texts, best | gold |"
        " preferred | scores | rewards",
        (BestOf,),
        own.is_best_of,
        own.read_best_of,
        tells=("prompt", "chosen", "rejected", "responses", *own.GOLD),
    ),
    Layout(
        "trl_implicit",
        "chosen, rejected as message lists",
        _PAIRS,
        recognize.is_implicit,
        general.read_implicit,
        tells=_PAIR_NAMES,
    ),
    Layout(
        "alpaca_pairs",
        "instruction, chosen, rejected [+ input, system, history] | instruction, output as [chosen,"
        " rejected]",
        _PAIRS,
        recognize.is_alpaca_pair,
        general.read_pair,
        tells=("instruction", "output", *_PAIR_NAMES),
    ),
    Layout(
        "question_pairs",
        "question | query | input, chosen, rejected [+ system]",
        _PAIRS,
        recognize.asked("question", "query", "input"),
        general.read_pair,
        tells=("question", "query", "input", *_PAIR_NAMES),
    ),
    Layout(
        "sharegpt_pairs",
        "conversations, chosen, rejected",
        _PAIRS,
        recognize.asked("conversations", "conversation"),
        general.read_pair,
        tells=("conversations", "conversation", *_PAIR_NAMES),
    ),
    Layout(
        "messages_pairs",
        "messages | trajectory, chosen, rejected",
        _PAIRS,
        recognize.asked("messages", "trajectory"),
        general.read_pair,
        tells=("messages", "trajectory", *_PAIR_NAMES),
    ),
    Layout(
        "swift_pairs",
        "messages | query, response | completion | output; rejected_response | rejected_messages |"
        " rejected",
        _PAIRS,
        recognize.is_swift_pair,
        general.read_swift_pair,
        tells=("messages", "rejected_messages", *general.REJECTED, *TEXTS, *general.PREFERRED),
    ),
    Layout(
        "kto",
        "prompt, completion | response | output | messages | conversations; label | kto_tag | thumb"
        " | feedback … as true or false",
        (Rating,),
        recognize.is_thumb,
        general.read_thumb,
        tells=(*TEXTS, *CONVERSATIONS, *ANSWERS, *judged.THUMBS),
    ),
    Layout(
        "alpaca",
        "instruction, output [+ input, system, history]",
        (Demonstration,),
        lambda row: recognize.is_alpaca(row) and not general.two_outputs(row),
        general.read_alpaca,
        tells=("instruction", "input", "output"),
    ),
    Layout(
        "sharegpt",
        "conversations of {from, value}",
        _TURNS,
        recognize.turns_alone("conversations", "conversation"),
        general.read_conversations,
        tells=("conversations", "conversation"),
    ),
    Layout(
        "messages",
        "messages of {role, content} | contents of {role, parts}",
        _TURNS,
        recognize.turns_alone("messages", "contents"),
        general.read_messages,
        tells=("messages", "contents"),
    ),
    Layout(
        "prompt_completion",
        "prompt, completion",
        (Demonstration,),
        recognize.is_completion,
        general.read_prompted,
    ),
    Layout(
        "swift",
        "query, response [+ history, system]",
        (Demonstration,),
        recognize.is_query,
        general.read_query,
        tells=("query", "response", "history"),
    ),
    Layout(
        "prompt_response",
        "prompt | question | instruction | input, response | output | answer",
        (Demonstration,),
        recognize.is_response,
        general.read_prompted,
        tells=(*TEXTS, "input", *ANSWERS),
    ),
    Layout(
        "references",
        "prompt, reference | references",
        (Demonstration,),
        recognize.is_references,
        own.read_references,
    ),
    Layout(
        "text",
        "text in a known template's markers",
        _TURNS,
        recognize.has("text", without=(*TEXTS, *CONVERSATIONS, "message_id", "chosen")),
        general.read_text,
        tells=("text",),
    ),
    Layout(
        "prompt_only",
        "prompt | question | instruction | query",
        (Prompt,),
        recognize.is_prompt_only,
        general.read_prompt,
        tells=TEXTS,
    ),
)
LAYOUTS: dict[str, Layout] = {layout.name: layout for layout in (*_PUBLISHED, *_GENERAL)}


def fitting(row: Columns) -> list[str]:
    """The layouts that a row fits: one published layout, or all general ones that fit. Empty
    columns of turns do not count.
    """
    columns = {
        key: value
        for key, value in row.items()
        if key not in CONVERSATIONS or value not in ([], "")
    }
    for layout in _PUBLISHED:
        if layout.matches(columns):
            return [layout.name]
    return [layout.name for layout in _GENERAL if layout.matches(columns)]
