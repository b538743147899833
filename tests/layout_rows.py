"""A file of rows for every layout that prefloop reads, with the columns of its publishers and words
of our own.
"""

from __future__ import annotations

import json
from typing import Any

Rows = list[dict[str, Any]]

ASK, GOOD, BAD = "How do swifts sleep?", "In the air, in short naps.", "They do not."
NEXT, MORE, LESS = "And storks?", "On one leg, on a nest.", "Who knows."
SYSTEM = "You keep birds."
TOOL = {
    "type": "function",
    "function": {
        "name": "ring",
        "description": "Looks a ring up",
        "parameters": {
            "type": "object",
            "properties": {"number": {"type": "string"}},
            "required": ["number"],
        },
    },
}
CALL = {
    "id": "r1",
    "type": "function",
    "function": {"name": "ring", "arguments": '{"number": "B12"}'},
}


def user(text: str = ASK) -> dict[str, Any]:
    return {"role": "user", "content": text}


def bot(text: str = GOOD, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def human(text: str = ASK) -> dict[str, Any]:
    return {"from": "human", "value": text}


def gpt(text: str = GOOD) -> dict[str, Any]:
    return {"from": "gpt", "value": text}


def hh(*turns: str) -> str:
    return "".join(
        f"\n\n{'Assistant' if index % 2 else 'Human'}: {turn}" for index, turn in enumerate(turns)
    )


def tree(text: str, role: str, *replies: dict[str, Any], rank: int | None = None) -> dict[str, Any]:
    return {
        "message_id": f"m-{text[:8]}",
        "text": text,
        "role": role,
        "lang": "en",
        "review_result": True,
        "deleted": False,
        "rank": rank,
        "labels": {"quality": {"value": 0.7, "count": 3}},
        "replies": list(replies),
    }


PUBLISHED: dict[str, tuple[str, Rows]] = {
    # name: (layout, rows)
    "trl explicit": (
        "trl_explicit",
        [{"prompt": [user()], "chosen": [bot()], "rejected": [bot(BAD)]}],
    ),
    "trl explicit with tools": (
        "trl_explicit",
        [
            {
                "prompt": [user("Whose ring is B12?")],
                "chosen": [
                    bot("", tool_calls=[CALL]),
                    {"role": "tool", "name": "ring", "content": "Ulm"},
                    bot("Ulm's."),
                ],
                "rejected": [bot("I guess Rome's.")],
                "tools": [TOOL],
            }
        ],
    ),
    "trl implicit": ("trl_implicit", [{"chosen": [user(), bot()], "rejected": [user(), bot(BAD)]}]),
    "trl prompt-completion": ("prompt_completion", [{"prompt": [user()], "completion": [bot()]}]),
    "trl unpaired": (
        "kto",
        [
            {"prompt": ASK, "completion": GOOD, "label": True},
            {"prompt": ASK, "completion": BAD, "label": False},
        ],
    ),
    "trl language modeling": ("messages", [{"messages": [user(), bot(), user(NEXT), bot(MORE)]}]),
    "trl prompt only": ("prompt_only", [{"prompt": [user()], "solution": "naps"}]),
    "hh-rlhf": (
        "hh",
        [{"chosen": hh(ASK, GOOD, NEXT, MORE), "rejected": hh(ASK, GOOD, NEXT, LESS)}],
    ),
    "ultrafeedback_binarized": (
        "trl_explicit",
        [
            {
                "prompt": ASK,
                "prompt_id": "f0e1",
                "chosen": [user(), bot()],
                "rejected": [user(), bot(BAD)],
                "messages": [user(), bot()],
                "score_chosen": 8.5,
                "score_rejected": 6.0,
            }
        ],
    ),
    "ultrafeedback by argilla": (
        "trl_explicit",
        [
            {
                "source": "birds",
                "prompt": ASK,
                "chosen": [user(), bot()],
                "chosen-rating": 4.75,
                "chosen-model": "big",
                "rejected": [user(), bot(BAD)],
                "rejected-rating": 2.0,
                "rejected-model": "small",
            }
        ],
    ),
    "ultrachat": (
        "messages",
        [{"prompt": ASK, "prompt_id": "aa", "messages": [user(), bot(), user(NEXT), bot(MORE)]}],
    ),
    "llama-factory alpaca": (
        "alpaca",
        [
            {
                "instruction": "Name two birds",
                "input": "that sleep in the air",
                "output": "Swifts and frigate birds.",
                "system": SYSTEM,
                "history": [[ASK, GOOD]],
            }
        ],
    ),
    "llama-factory alpaca pairs": (
        "alpaca_pairs",
        [{"instruction": ASK, "input": "", "chosen": GOOD, "rejected": BAD}],
    ),
    "llama-factory older pairs": (
        "alpaca_pairs",
        [{"instruction": ASK, "input": "", "output": [GOOD, BAD]}],
    ),
    "llama-factory kto": (
        "kto",
        [
            {"instruction": ASK, "input": "", "output": GOOD, "kto_tag": True},
            {"instruction": ASK, "input": "", "output": BAD, "kto_tag": False},
        ],
    ),
    "llama-factory sharegpt with tools": (
        "sharegpt",
        [
            {
                "conversations": [
                    human("Whose ring is B12?"),
                    {
                        "from": "function_call",
                        "value": json.dumps({"name": "ring", "arguments": {"number": "B12"}}),
                    },
                    {"from": "observation", "value": '{"town": "Ulm"}'},
                    gpt("Ulm's."),
                ],
                "system": SYSTEM,
                "tools": json.dumps(
                    [
                        {
                            "name": "ring",
                            "description": "Looks a ring up",
                            "parameters": {"type": "object"},
                        }
                    ]
                ),
            }
        ],
    ),
    "llama-factory ranking": (
        "sharegpt_pairs",
        [{"conversations": [human()], "chosen": gpt(), "rejected": gpt(BAD)}],
    ),
    "axolotl flags": (
        "messages",
        [
            {
                "messages": [
                    {"role": "system", "content": SYSTEM},
                    user(),
                    bot(BAD, training=False),
                    user(NEXT),
                    bot(MORE, training=True),
                ]
            }
        ],
    ),
    "orca_dpo_pairs": (
        "question_pairs",
        [
            {"system": "", "question": ASK, "chosen": GOOD, "rejected": BAD},
            {"system": SYSTEM, "question": ASK, "chosen": GOOD, "rejected": BAD},
        ],
    ),
    "chosen_response": (
        "question_pairs",
        [{"question": ASK, "chosen_response": GOOD, "rejected_response": BAD}],
    ),
    "ms-swift": (
        "swift",
        [{"system": SYSTEM, "query": NEXT, "response": MORE, "history": [[ASK, GOOD]]}],
    ),
    "ms-swift pairs": ("swift_pairs", [{"messages": [user(), bot()], "rejected_response": BAD}]),
    "ms-swift message pairs": (
        "swift_pairs",
        [{"messages": [user(), bot()], "rejected_messages": [user(), bot(BAD)]}],
    ),
    "ms-swift tools": (
        "messages",
        [
            {
                "tools": json.dumps([TOOL]),
                "messages": [
                    user("Whose ring is B12?"),
                    {
                        "role": "tool_call",
                        "content": '{"name": "ring", "arguments": {"number": "B12"}}',
                    },
                    {"role": "tool_response", "content": "Ulm"},
                    bot("Ulm's."),
                ],
            }
        ],
    ),
    "openai fine-tuning": (
        "messages",
        [
            {
                "messages": [
                    user("Whose ring is B12?"),
                    {"role": "assistant", "tool_calls": [CALL], "weight": 0},
                    {"role": "tool", "tool_call_id": "r1", "content": "Ulm"},
                    bot("Ulm's.", weight=1),
                ],
                "tools": [TOOL],
                "parallel_tool_calls": False,
            }
        ],
    ),
    "openai preferences": (
        "openai_preferences",
        [
            {
                "input": {"messages": [user()], "tools": [TOOL], "parallel_tool_calls": True},
                "preferred_output": [bot()],
                "non_preferred_output": [bot(BAD)],
            }
        ],
    ),
    "helpsteer2": (
        "helpsteer",
        [
            {
                "prompt": ASK,
                "response": GOOD,
                "helpfulness": 4,
                "correctness": 4,
                "coherence": 4,
                "complexity": 1,
                "verbosity": 1,
            },
            {
                "prompt": ASK,
                "response": BAD,
                "helpfulness": 1,
                "correctness": 0,
                "coherence": 4,
                "complexity": 0,
                "verbosity": 0,
            },
        ],
    ),
    "helpsteer2 preference": (
        "helpsteer2_preference",
        [
            {
                "split": "train",
                "prompt": f"{ASK}\n<extra_id_1>Assistant\n{GOOD}\n<extra_id_1>User\n{NEXT}",
                "response_1": LESS,
                "response_2": MORE,
                "preference_strength": 2,
                "preference_statement": "Response 2 knows.",
                "preference_elaboration": "It answers.",
            }
        ],
    ),
    "helpsteer3": (
        "helpsteer3",
        [
            {
                "domain": "general",
                "language": "english",
                "context": [user(), bot(), user(NEXT)],
                "response1": MORE,
                "response2": LESS,
                "overall_preference": -2,
                "individual_preference": [
                    {
                        "score": -3,
                        "reasoning": "The first knows.",
                        "feedback1": "Good.",
                        "feedback2": "Bad.",
                    },
                    {
                        "score": -1,
                        "reasoning": "The first is kinder.",
                        "feedback1": "Good.",
                        "feedback2": "Bad.",
                    },
                    {"score": 0, "reasoning": "The same.", "feedback1": "So.", "feedback2": "So."},
                ],
            }
        ],
    ),
    "ultrafeedback": (
        "ultrafeedback",
        [
            {
                "source": "birds",
                "instruction": ASK,
                "models": ["big", "small", "odd"],
                "completions": [
                    {
                        "model": "big",
                        "principle": "honesty",
                        "response": GOOD,
                        "overall_score": 8.0,
                        "fine-grained_score": 4.5,
                        "annotations": {},
                    },
                    {
                        "model": "small",
                        "principle": "honesty",
                        "response": BAD,
                        "overall_score": 10.0,
                        "fine-grained_score": 1.5,
                        "annotations": {},
                    },
                    {
                        "model": "odd",
                        "principle": "honesty",
                        "response": LESS,
                        "overall_score": 2.0,
                        "fine-grained_score": 1.5,
                        "annotations": {},
                    },
                ],
                "correct_answers": ["None"],
            }
        ],
    ),
    "nectar": (
        "nectar",
        [
            {
                "prompt": f"\n\nHuman: {ASK}\n\nAssistant: ",
                "answers": [
                    {"answer": GOOD, "model": "big", "rank": 1.0},
                    {"answer": LESS, "model": "odd", "rank": 2.0},
                    {"answer": BAD, "model": "small", "rank": 3.0},
                ],
                "turns": 1,
                "num_responses": 3,
                "source": ["birds"],
                "good_natured": True,
            }
        ],
    ),
    "arena 33k": (
        "arena",
        [
            {
                "question_id": "q1",
                "model_a": "big",
                "model_b": "small",
                "winner": winner,
                "judge": "arena_user_7",
                "conversation_a": [user(), bot(), user(NEXT), bot(MORE)],
                "conversation_b": [user(), bot(BAD), user(NEXT), bot(LESS)],
                "turn": 2,
                "anony": True,
                "language": "English",
                "tstamp": 1.5,
            }
            for winner in ("model_a", "model_b", "tie", "tie (bothbad)")
        ],
    ),
    "arena 55k": (
        "arena",
        [
            {
                "id": 30192,
                "model_a": "big",
                "model_b": "small",
                "prompt": json.dumps([ASK, NEXT]),
                "response_a": json.dumps([GOOD, MORE]),
                "response_b": json.dumps([BAD, LESS]),
                "winner_model_a": 0,
                "winner_model_b": 1,
                "winner_tie": 0,
            }
        ],
    ),
    "mt-bench human judgments": (
        "arena",
        [
            {
                "question_id": 81,
                "model_a": "big",
                "model_b": "small",
                "winner": "model_b",
                "judge": "author_2",
                "conversation_a": [user(), bot(BAD), user(NEXT), bot(LESS)],
                "conversation_b": [user(), bot(), user(NEXT), bot(MORE)],
                "turn": 1,
            }
        ],
    ),
    "safe-rlhf": (
        "safe_rlhf",
        [
            {
                "prompt": ASK,
                "response_0": BAD,
                "response_1": GOOD,
                "is_response_0_safe": True,
                "is_response_1_safe": False,
                "better_response_id": 1,
                "safer_response_id": 0,
            }
        ],
    ),
    "oasst trees": (
        "oasst_trees",
        [
            {
                "message_tree_id": "t1",
                "tree_state": "ready_for_export",
                "prompt": tree(
                    ASK,
                    "prompter",
                    tree(
                        GOOD,
                        "assistant",
                        tree(
                            NEXT,
                            "prompter",
                            tree(LESS, "assistant", rank=1),
                            tree(MORE, "assistant", rank=0),
                        ),
                        rank=0,
                    ),
                    tree(BAD, "assistant", rank=1),
                ),
            }
        ],
    ),
    "shp": (
        "shp",
        [
            {
                "post_id": "p",
                "history": ASK,
                "human_ref_A": BAD,
                "human_ref_B": GOOD,
                "labels": 0,
                "score_ratio": 2.0,
            }
        ],
    ),
    "stack exchange pairs": (
        "question_pairs",
        [{"qid": 1, "question": ASK, "response_j": GOOD, "response_k": BAD}],
    ),
    "alpaca_eval annotations": (
        "alpaca_eval",
        [
            {
                "instruction": ASK,
                "output_1": BAD,
                "generator_1": "small",
                "output_2": GOOD,
                "generator_2": "big",
                "annotator": "careful",
                "preference": 2,
            },
            {
                "instruction": ASK,
                "output_1": BAD,
                "generator_1": "small",
                "output_2": GOOD,
                "generator_2": "big",
                "annotator": "careful",
                "preference": 1.5,
            },
        ],
    ),
    "alpaca_eval outputs": (
        "alpaca",
        [{"dataset": "birds", "instruction": ASK, "output": GOOD, "generator": "big"}],
    ),
    "mt-bench questions": (
        "mt_bench_questions",
        [{"question_id": 81, "category": "birds", "turns": [ASK, NEXT]}],
    ),
    "rewardbench": (
        "trl_explicit",
        [
            {
                "id": 3,
                "prompt": ASK,
                "chosen": GOOD,
                "chosen_model": "big",
                "rejected": BAD,
                "rejected_model": "small",
                "subset": "birds",
            }
        ],
    ),
    "rewardbench 2": (
        "best_of",
        [
            {
                "id": "3",
                "prompt": ASK,
                "chosen": [GOOD],
                "rejected": [BAD, LESS, "No."],
                "num_correct": 1,
                "total_completions": 4,
                "subset": "birds",
            }
        ],
    ),
    "openorca": (
        "prompt_response",
        [{"id": "o.1", "system_prompt": SYSTEM, "question": ASK, "response": GOOD}],
    ),
    "dolly": (
        "prompt_response",
        [
            {
                "instruction": "Say when they sleep.",
                "context": "Swifts sleep in the air.",
                "response": "In flight.",
                "category": "closed_qa",
            }
        ],
    ),
    "question and answer": ("prompt_response", [{"question": ASK, "answer": GOOD}]),
    "guanaco": (
        "text",
        [{"text": f"### Human: {ASK}### Assistant: {GOOD}### Human: {NEXT}### Assistant: {MORE}"}],
    ),
    "thumbs": (
        "kto",
        [
            {"prompt": ASK, "response": GOOD, "thumb": "up"},
            {"prompt": ASK, "response": BAD, "thumb": "down"},
        ],
    ),
    "prefloop comparisons": (
        "prefloop",
        [
            {
                "id": "c1",
                "prompt": [user()],
                "responses": [{"text": GOOD, "source": "big"}, {"text": BAD}],
                "votes": [{"annotator": "ann", "choice": 0, "strength": 3}],
                "meta": {"shown": [1, 0]},
            }
        ],
    ),
    "prefloop demonstrations": ("prefloop", [{"id": "d1", "prompt": [user()], "response": GOOD}]),
    "prefloop ratings": (
        "prefloop",
        [
            {
                "id": "r1",
                "prompt": [user()],
                "response": {"text": GOOD},
                "votes": [{"annotator": "ann", "value": "up"}],
            }
        ],
    ),
    "answers": (
        "answers",
        [{"id": "p1", "prompt": [user()], "response": GOOD, "finished": True, "tokens": 7}],
    ),
    "scored": (
        "scored",
        [
            {
                "question": ASK,
                "responses": [
                    {"text": BAD, "score": 1, "model": "wren"},
                    {"text": GOOD, "score": 4},
                ],
            }
        ],
    ),
    "sides": (
        "judgments",
        [{"question": ASK, "answer_1": BAD, "answer_2": GOOD, "preferred": "answer_2"}],
    ),
    "thumbs in words": (
        "kto",
        [{"prompt": ASK, "response": GOOD, "feedback": "👍", "is_good": "yes", "rating": 4}],
    ),
    "judgments": (
        "judgments",
        [{"prompt": ASK, "response_a": GOOD, "response_b": BAD, "human": ["a", "b", "tie"]}],
    ),
    "best of n": (
        "best_of",
        [{"prompt": ASK, "responses": [BAD, GOOD, LESS], "scores": [0.1, 0.9, 0.2]}],
    ),
    "references": ("references", [{"prompt": ASK, "references": [GOOD, MORE]}]),
    "messages beside a pair": (
        "messages_pairs",
        [{"messages": [user()], "chosen": GOOD, "rejected": BAD}],
    ),
}
