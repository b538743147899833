"""Find, count and name the evaluation prompts that occur in the training set.

Texts are compared in a normal form, in which case, blanks and punctuation do not count. A match is
one of three kinds, and only the strongest is reported:

- ``prompt``: every turn is the same, with its thoughts and calls. The tools of the prompt do not
  count.
- ``last turn``: the user's last turn is the same in another conversation, whatever tool calls and
  results follow. Turns of under 4 words ("go on, please") do not count.
- ``13-gram``: at least half of the prompt's runs of 13 words occur in training prompts. GPT-3 was
  checked with this length (Brown et al. 2020, arXiv 2005.14165, appendix C). Half, because a shared
  instruction around another question is no leak.

The evaluation set is indexed and the training set streamed, so memory grows with the evaluation set
only. Paraphrases are not recognized.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

from prefloop.base.console import shortened
from prefloop.records import Message

KINDS = ("prompt", "last turn", "13-gram")
WORDS = 13
SHORTEST_TURN = 4
_NOT_WORD = re.compile(r"[^\w]+")


class Prompted(Protocol):
    """A record with a prompt, as all of ``prefloop.records`` are."""

    @property
    def id(self) -> str: ...
    @property
    def prompt(self) -> list[Message]: ...


@dataclasses.dataclass(frozen=True)
class Match:
    """An evaluation prompt, the first training prompt that matches it, and the kind of the
    match.
    """

    id: str
    train_id: str
    kind: str
    text: str = dataclasses.field(default="", compare=False)
    train_text: str = dataclasses.field(default="", compare=False)
    """The user's last turns in both prompts, shortened, so that a person can compare them at a
    glance.
    """


@dataclasses.dataclass(frozen=True)
class Overlap:
    """The matches among ``prompts`` records, which have ``distinct`` different prompts."""

    prompts: int
    matches: list[Match]
    distinct: int

    @property
    def ids(self) -> set[str]:
        """Ids of the evaluation prompts with a match."""
        return {match.id for match in self.matches}

    def describe(self, shown: int = 3) -> str:
        """A line for the log: how many prompts are in the training set, how many only resemble one
        in it and how, and the ids of the first few.
        """
        same, like = self.seen, [m for m in self.matches if m.kind != "prompt"]
        parts = [
            f"{len(same) or 'none'} of {self._among} {'is' if len(same) < 2 else 'are'} in the"
            f" training set{_named(same, shown)}"
        ]
        if like:
            counts = ", ".join(
                f"{n} by {kind}" for kind in KINDS if (n := sum(m.kind == kind for m in like))
            )
            parts.append(
                f"{len(like)} more {'shares' if len(like) == 1 else 'share'} words with a prompt in"
                f" it ({counts}){_named(like, shown)}"
            )
        return "; ".join(parts)

    @property
    def seen(self) -> list[Match]:
        """The matches of whole prompts. The others share only a turn or runs of words."""
        return [match for match in self.matches if match.kind == "prompt"]

    @property
    def _among(self) -> str:
        return among(self.prompts, self.distinct)

    def to_dict(self) -> dict[str, Any]:
        """``{prompts, distinct, overlapping, kinds: {kind: n}, matches: [{id, train_id, kind, text,
        train_text}]}``.
        """
        return {
            "prompts": self.prompts,
            "distinct": self.distinct,
            "overlapping": len(self.matches),
            "kinds": {kind: sum(m.kind == kind for m in self.matches) for kind in KINDS},
            "matches": [dataclasses.asdict(m) for m in self.matches],
        }


def overlap(train_prompts: Iterable[Prompted], eval_prompts: Sequence[Prompted]) -> Overlap:
    """The evaluation prompts that occur among the training prompts, each once, by its id and its
    strongest kind of match.
    """
    whole: dict[tuple[tuple[str, str], ...], list[int]] = {}
    last: dict[str, list[int]] = {}
    grams: dict[int, list[int]] = {}
    runs: list[set[int]] = []
    for i, record in enumerate(eval_prompts):
        turns = _turns(record)
        whole.setdefault(turns, []).append(i)
        asked = _last_asked(turns)
        if len(asked.split()) >= SHORTEST_TURN:
            last.setdefault(asked, []).append(i)
        runs.append(set(_grams(turns)))
        for gram in runs[-1]:
            grams.setdefault(gram, []).append(i)
    match_of: dict[int, Match] = {}
    seen: list[set[int]] = [set() for _ in eval_prompts]

    def take(indices: Iterable[int], train: Prompted, kind: str) -> None:
        for i in indices:
            if i not in match_of or KINDS.index(kind) < KINDS.index(match_of[i].kind):
                match_of[i] = Match(
                    eval_prompts[i].id, train.id, kind, _shown(eval_prompts[i]), _shown(train)
                )

    for record in train_prompts:
        turns = _turns(record)
        take(whole.get(turns, ()), record, "prompt")
        take(last.get(_last_asked(turns), ()), record, "last turn")
        touched = set()
        for gram in _grams(turns):
            for i in grams.get(gram, ()):
                seen[i].add(gram)
                touched.add(i)
        take((i for i in touched if 2 * len(seen[i]) >= len(runs[i])), record, "13-gram")
    ids: dict[str, Match] = {}
    for i in sorted(match_of):
        ids.setdefault(match_of[i].id, match_of[i])
    return Overlap(len({record.id for record in eval_prompts}), list(ids.values()), len(whole))


def among(records: int, distinct: int) -> str:
    """'6 prompts', or '40 rows (11 different prompts)' where several records share one."""
    if distinct >= records:
        return f"{records:,} prompts"
    return f"{records:,} rows ({distinct:,} different prompts)"


def _named(matches: Sequence[Match], shown: int) -> str:
    names = ", ".join(f"{m.id} (as {m.train_id})" for m in matches[:shown])
    more = f" and {len(matches) - shown} more" if len(matches) > shown else ""
    return f": {names}{more}" if matches else ""


def _shown(record: Prompted) -> str:
    """The user's last turn, for a person to read."""
    return shortened(next((str(m) for m in reversed(record.prompt) if m.role == "user"), ""), 300)


def normalized(text: str) -> str:
    """The text in lower case, with words and numbers only, separated by single blanks."""
    return _NOT_WORD.sub(" ", text.casefold()).strip()


def _turns(record: Prompted) -> tuple[tuple[str, str], ...]:
    return tuple((message.role, normalized(str(message))) for message in record.prompt)


def _last_asked(turns: Sequence[tuple[str, str]]) -> str:
    """The user's last turn. Tool calls and results may follow it."""
    return next((text for role, text in reversed(turns) if role == "user"), "")


def _grams(turns: Sequence[tuple[str, str]]) -> Iterator[int]:
    """Hashes of the runs of 13 words within the user's turns."""
    for role, text in turns:
        words = text.split() if role == "user" else []
        for start in range(len(words) - WORDS + 1):
            yield hash(tuple(words[start : start + WORDS]))
