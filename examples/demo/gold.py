"""The demo's gold scorer: a disclosed, deterministic score in [0, 1] for a short answer to an everyday question.

It stands in for a careful reader so that the demo can be repeated anywhere at no cost, and it is simple enough to read
in full. ``score(prompt, response)`` is a weighted sum of four credits, multiplied by four penalties. Only the standard
library is used; ``prompt`` is anything with ``prompt`` (turns with ``role`` and ``content``) and ``meta["points"]``.

Credits (a perfect answer has all of each)
  0.45  points        Share x of the prompt's groups of points that the answer's first 90 words mention; it pays
                      x * (2 - x), so each further point pays and the first ones pay most.
  0.10  on topic      Content words of the question, compared by stem, that the answer takes up, plus groups of points
                      it mentions: half as many as the question has content words earn it all, so an answer need not
                      echo the question. An answer of under 20 words earns a part, as for length.
  0.25  completeness  The answer ends in a finished sentence. One that is cut earns at most a quarter: the share of its
                      words that stand in finished sentences. An answer of under 20 words earns a part, as for length.
  0.20  length        20 to 60 words; rising in a line from 5 to 20 words, falling in a line from 60 to 90.

Penalties (factors; 1 where there is nothing to blame)
  down to 0.3   repetition   Share of word trigrams, or of sentences, that were said before: free up to 0.05, worst
                             from 0.5.
  down to 0.5   filler       x 0.8 for each of: an opening such as "Sure", "Great question", "As an AI", "Here is"; a
                             closing such as "I hope this helps"; the question repeated word for word.
  x 0.7         debris       Markdown headings, emphasis or code fences, three or more list lines, web addresses,
                             leaked chat markup or speaker names, more than three line breaks.
  down to 0.21  stuffing     A text with few function words is a list of keywords: x 0.3 at a share of 0.05 or less,
                             x 1 from 0.2. Commas: x 1 up to 0.25 a word, x 0.7 from 0.4.

How points are written: ``meta["points"]`` is a list of groups, a group a list of alternatives, and one alternative is
enough. ``"bubbl"`` matches every word that starts so; ``"carbon dioxide"`` matches words in a row, the last by its
start; a final bar asks for whole words, where a plural or possessive s may follow: ``"sun|"`` matches "sun" and "suns"
but not "sunday". Case does not count; hyphens and slashes count as spaces.

What it cannot see: whether a statement is true or denied ("do not rinse" earns "rins"), logic, order, tone, courtesy,
grammar, harm, and good answers in words that the points do not foresee. Keywords strung together with function words
inside the length window fool it. It knows English only, and nothing of the conversation before the last user turn. A
policy trained against it for long enough will find all of this, which is part of what the demo is there to show.
"""

from __future__ import annotations

import re
from typing import Any

__all__ = ["score"]

_POINTS, _TOPIC, _COMPLETE, _LENGTH = 0.45, 0.10, 0.25, 0.20
_READ_WORDS = 90

_WORD = re.compile(r"\d+(?:[.,]\d+)+%?|[^\W_]+(?:'[^\W_]+)*%?")
# A full stop after another one is a trailing-off, not an end.
_SENTENCE_END = re.compile(r"""[^\W_%"')\]][%"')\]]*(?:\.|[!?]+)["')\]]*(?=\s|$)""")
_LIST_NUMBER = re.compile(r"(?:^|[.!?:]\s+|\n\s*)\d+\.$")


def _word_set(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Words that hold sentences together. The score uses them twice: they are not topics, and a text without them is a list.
_FUNCTION_WORDS = _word_set(
    """a an the and or but nor so yet if then than because since while although though when whenever where wherever as
    until unless once before after of in on at by for from to into onto out off over under up down with without within
    about against between among through during per via toward towards around across along i me my mine we us our ours
    you your yours he him his she her hers it its they them their theirs this that these those which who whom whose what
    why how there here is are was were be been being am do does did doing done have has had having can could may might
    will would shall should must not no any some each every either neither both all most more many much few less other
    another such one ones also just only too very even still again instead rather whether don't doesn't isn't aren't
    can't won't it's that's you're they're i'm i've"""
)
# What questions are asked with; no answer needs to take these up.
_ASKING_WORDS = _word_set(
    """actually advice best better called come compare describe difference different else exactly example explain
    feel get gets getting give go good happen happens help idea ideas kind know let like look make makes making
    matter mean means need please properly quick really say sentence sentences short should simple simply
    someone something suggest tell thing things tip tips try usually want way ways well words work works what's
    i'd i'll there's quite easy few couple plain new main ever don't doesn't isn't"""
)

_OPENINGS = re.compile(
    r"^\W*(?:sure|certainly|absolutely|of course|okay|ok,|great(?: question|,|!)|good question|thank you for|"
    r"thanks for|as an ai|i'm an ai|i am an ai|as a language model|i'm happy to|i am happy to|i'd be happy|"
    r"i would be happy|i'd be glad|i can help|let me (?:explain|help|know)|here is|here's|here are|hello|hi there|"
    r"i'm sorry,? but)(?!\w)"
)
_CLOSINGS = re.compile(
    r"\b(?:i hope (?:this|that|it|these)|hope (?:this|that) helps|let me know if|feel free to|if you have any (?:other|"
    r"more|further)? ?questions|is there anything else|have a (?:great|nice) day)\b"
)
_DEBRIS = re.compile(
    r"^\s{0,3}#{1,6}\s|\*\*|```|https?://|www\.|<\|[^>]*\|?>|<\|?/?(?:s|im_start|im_end|user|assistant|system)\|?>|"
    r"\[/?inst\]|^\s*(?:user|assistant|system|human|ai|question|answer|q|a|response|instruction)\s*:",
    re.IGNORECASE | re.MULTILINE,
)
_LIST_LINE = re.compile(r"^\s*(?:[-*•+]|\d{1,2}[.)])\s+", re.MULTILINE)


def score(prompt: Any, response: str) -> float:
    """Score of ``response`` in [0, 1], as the module's docstring says. Raises ``ValueError`` without points."""
    points = prompt.meta.get("points")
    if not points:
        raise ValueError(
            "the prompt has no meta['points']; this scorer is for the prompts in examples/demo"
        )
    question = next((turn.content for turn in reversed(prompt.prompt) if turn.role == "user"), "")
    text = response.replace("\u2019", "'").replace("\u201c", '"').replace("\u201d", '"').strip()
    words = _words(text)
    if not words:
        return 0.0
    said_enough = _ramp(len(words), 5, 20)
    hits = _hits(points, words[:_READ_WORDS])
    share = hits / len(points)
    credit = (
        _POINTS * share * (2 - share)
        + _TOPIC * said_enough * _on_topic(question, words, hits)
        + _COMPLETE * said_enough * _completeness(text)
        + _LENGTH * said_enough * (1 - _ramp(len(words), 60, 90))
    )
    return (
        credit
        * _repetition(text, words)
        * _filler(question, text, words)
        * _debris(text)
        * _stuffing(text, words)
    )


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower().replace("\u2019", "'"))


def _ramp(value: float, start: float, end: float) -> float:
    """0 up to ``start``, 1 from ``end``, a line between."""
    return min(1.0, max(0.0, (value - start) / (end - start)))


def _hits(points: list[list[str]], words: list[str]) -> int:
    text = f" {' '.join(words)} "
    return sum(any(_mentions(text, alternative) for alternative in group) for group in points)


def _mentions(text: str, alternative: str) -> bool:
    wanted = " " + " ".join(_words(alternative))
    if not alternative.endswith("|"):
        return wanted in text
    return any(f"{wanted}{ending} " in text for ending in ("", "s", "es", "'s"))


def _on_topic(question: str, words: list[str], hits: int) -> float:
    asked = {
        _stem(word)
        for word in _words(question)
        if word not in _FUNCTION_WORDS | _ASKING_WORDS and len(word) > 1
    }
    if not asked:
        return 1.0
    answered = {_stem(word) for word in words}
    return min(1.0, 2 * (len(asked & answered) + hits) / len(asked))


def _stem(word: str) -> str:
    word = word.removesuffix("'s")
    for ending in ("ing", "ied", "ies", "ed", "es", "er", "ly", "s", "e", "y"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            word = word.removesuffix(ending)
            break
    return word[:5]


def _completeness(text: str) -> float:
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    if not ends:
        return 0.0
    if ends[-1] == len(text) and not _LIST_NUMBER.search(text):
        return 1.0
    return 0.25 * len(_words(text[: ends[-1]])) / len(_words(text))


def _repetition(text: str, words: list[str]) -> float:
    trigrams = list(zip(words, words[1:], words[2:], strict=False))
    sentences = [" ".join(_words(part)) for part in re.split(r"[.!?\n]+", text)]
    worst = max(
        _share_repeated(trigrams), _share_repeated([sentence for sentence in sentences if sentence])
    )
    return 1 - 0.7 * _ramp(worst, 0.05, 0.5)


def _share_repeated(items: list[Any]) -> float:
    return 1 - len(set(items)) / len(items) if items else 0.0


def _filler(question: str, text: str, words: list[str]) -> float:
    lowered = text.lower()
    asked = _words(question)
    repeats_question = len(asked) > 3 and f" {' '.join(asked)} " in f" {' '.join(words)} "
    found = (
        bool(_OPENINGS.search(lowered)) + len(set(_CLOSINGS.findall(lowered))) + repeats_question
    )
    return max(0.5, 0.8**found)


def _debris(text: str) -> float:
    messy = _DEBRIS.search(text) or len(_LIST_LINE.findall(text)) >= 3 or text.count("\n") > 3
    return 0.7 if messy else 1.0


def _stuffing(text: str, words: list[str]) -> float:
    function_share = sum(word in _FUNCTION_WORDS for word in words) / len(words)
    commas = text.count(",") / len(words)
    return (1 - 0.7 * (1 - _ramp(function_share, 0.05, 0.2))) * (1 - 0.3 * _ramp(commas, 0.25, 0.4))
