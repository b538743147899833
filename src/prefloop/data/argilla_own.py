"""Records that prefloop has sent to Argilla, on the way back: unescaped, in their own order, with
their votes.

For the page, left and right were drawn and texts escaped; sources and metadata were kept off it.
See ``labeling.argilla.forms``.
"""

from __future__ import annotations

import html
from typing import Any

from prefloop.data.argilla_votes import HIDDEN, STRENGTHS, ArgillaAnswer, Choice, Item
from prefloop.data.check import BadRow
from prefloop.records import (
    Comparison,
    Conversation,
    Message,
    Rating,
    Response,
    Thumb,
    Vote,
    from_dict,
)

CHOICES: dict[str, Choice] = {"A": 0, "B": 1, "tie": "tie"}


def shown(text: str) -> str:
    """The HTML that looks like ``text``."""
    return html.escape(text, quote=False)


def meant(text: str) -> str:
    """The inverse of ``shown``. ``html.unescape`` would change more than that."""
    return text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")


def own_record(item: Item, id: str) -> Comparison | Rating:
    """The record as it was sent, with the votes that ``to_argilla`` sent along and one vote for
    every submitted answer.

    A comparison's ``meta["shown"]`` holds the indices of its responses in the order of the screen.
    ``strength`` is 1 (slight), 2 (clear) or 3 (strong). Raises ``BadRow`` for a record that
    somebody has changed so that it cannot be read.
    """
    hidden = item.meta[HIDDEN]
    try:
        fields = item.fields
        seen = [{"role": m["role"], "content": meant(m["content"])} for m in fields["prompt"]]
        turns = [from_dict(Message, turn) for turn in hidden.get("prompt", seen)]
        prompt = Conversation(turns, hidden.get("tools", ()))
        sent = hidden.get("votes") or []
        if "response" in fields:
            response = from_dict(
                Response, {"text": meant(fields["response"]), **hidden["responses"][0]}
            )
            thumbs = [from_dict(Thumb, vote) for vote in sent] + [
                _thumb(answer) for answer in item.submitted
            ]
            return Rating(id, prompt, response, thumbs, hidden["meta"])
        texts = [meant(fields["response_a"]), meant(fields["response_b"])]
        votes = [_vote(answer) for answer in item.submitted]
        if hidden["swapped"]:
            texts, votes = texts[::-1], [vote.swap() for vote in votes]
        both = zip(texts, hidden["responses"], strict=True)
        responses = [from_dict(Response, {"text": text, **unseen}) for text, unseen in both]
        order = {"shown": [1, 0] if hidden["swapped"] else [0, 1]}
        votes = [from_dict(Vote, vote) for vote in sent] + votes
        return Comparison(id, prompt, responses, votes, hidden["meta"] | order)
    except BadRow:
        raise
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise BadRow(
            "metadata", f"is not what prefloop sent to Argilla ({type(error).__name__}: {error})"
        ) from None


def _vote(answer: ArgillaAnswer) -> Vote:
    """The vote in the order of the screen: 0 is A."""
    chosen = _value(answer, "preferred")
    if chosen not in CHOICES:
        raise BadRow("preferred", f"is {chosen!r}, expected A, B or tie")
    strength = STRENGTHS.get(_value(answer, "strength"))
    return Vote(
        answer.annotator, CHOICES[chosen], strength, _value(answer, "why") or None, answer.at
    )


def _thumb(answer: ArgillaAnswer) -> Thumb:
    value: Any = _value(answer, "thumb")
    if value not in ("up", "down"):
        raise BadRow("thumb", f"is {value!r}, expected up or down")
    return Thumb(answer.annotator, value, _value(answer, "why") or None, answer.at)


def _value(answer: ArgillaAnswer, question: str) -> str:
    return str(answer.values.get(question) or "").strip()
