"""Checks at the start of a stage: each takes seconds and prints one line, and the run stops when
one fails.

They catch bugs that otherwise only make a model worse, without an error: a doubled BOS, an EOS
outside the loss, a reference that is not the policy's start, dropout in log-prob passes, weights
that do not move, frozen weights that do.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from prefloop.base.console import neutral, quote, say
from prefloop.data.chat import ChatFormat
from prefloop.data.encode import Encoder
from prefloop.data.packing import Document
from prefloop.data.tokens import Tokens
from prefloop.errors import AuditError


class Audit:
    """The checks of one stage. Their lines are printed, kept in the stage's metrics and shown in
    the report.
    """

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self.lines: list[str] = []

    def check(self, name: str, ok: bool, result: str, fix: str) -> None:
        """Record one check; raises ``AuditError`` with the result and the fix when it failed."""
        self.lines.append(f"{name}: {result}")
        say(
            f"  audit {self.stage}: {name}: {result}{'' if ok else '  FAILED'}",
            "dim" if ok else "bold red",
        )
        if not ok:
            raise AuditError(f"audit of stage {self.stage} failed: {name}: {result}. {fix}")

    def prompts(self, chat: ChatFormat, prompts_ids: Iterable[Sequence[int]]) -> None:
        """Check that every prompt starts with exactly one BOS where the tokenizer adds one to plain
        text.
        """
        count = doubled = missing = 0
        for ids in prompts_ids:
            count += 1
            doubled += chat.doubled_bos(ids)
            missing += chat.adds_bos and ids[0] != chat.tokenizer.bos_token_id
        self.check(
            "one BOS",
            doubled + missing == 0,
            f"{count} prompts, {doubled} doubled, {missing} missing",
            "The chat template and the tokenizer both write one, or neither does: correct"
            " backbone.chat_template.",
        )

    def tokens(self, chat: ChatFormat, documents: Iterable[Document], cut: int) -> None:
        """Check BOS, EOS and padding of tokenized rows, which are read once; ``cut`` of their
        responses were truncated.
        """
        count = ended = 0

        def prompts() -> Iterator[Sequence[int]]:
            nonlocal count, ended
            for document in documents:
                count += len(document.responses_ids)
                ended += sum(map(chat.ended, document.responses_ids))
                yield document.prompt_ids

        self.prompts(chat, prompts())
        stop = chat.tokenizer.convert_ids_to_tokens(chat.stop_id)
        self.check(
            "EOS inside the loss",
            ended + cut >= count and ended > 0,
            f"{ended} of {count} responses end in {stop}, {cut} were cut",
            "A model trained without it never stops."
            + (" Raise backbone.max_length: it cuts the responses." if cut else ""),
        )
        same = chat.pad_id == chat.stop_id
        handled = "equals EOS; handled, masks come from lengths" if same else "differs from EOS"
        self.check("pad token", True, handled, "")

    def texts(self, chat: ChatFormat, encoder: Encoder, example: Tokens) -> None:
        """Print one training example as the model reads it, and check that texts fit a chat
        template.

        Each check fails when more than half of the answers have the fault: then the file was read
        wrongly.
        """
        for line in encoder.notes():
            self.note(line)
        lines = neutral(chat.marked(example)).splitlines()
        # Printed but not kept: metrics travel with an artifact, and an example may be private.
        say(f"  audit {self.stage}: an example, what is learnt between ⟦ and ⟧:", "dim")
        for line in lines:
            quote(f"    {line}", "dim")
        for name, count, fix in (
            (
                "control tokens inside texts",
                encoder.with_controls,
                "The texts carry a chat template of their own: take it off.",
            ),
            (
                "responses that begin with their prompt",
                encoder.repeating,
                "The prompt would be learnt as part of the answer: take it off.",
            ),
            (
                "doubled ends of turns",
                encoder.ended_twice,
                "The texts end in a control token: take it off, the template writes it.",
            ),
        ):
            self.check(
                name,
                2 * count <= encoder.answers,
                f"{count} of {encoder.answers} responses (at most half)",
                fix,
            )

    def note(self, line: str) -> None:
        """Record a line that checks nothing."""
        self.lines.append(line)
        say(f"  audit {self.stage}: {line}", "dim")

    def trainable(self, named: dict[str, Tensor], role: str, count: int) -> None:
        """Check that all parameters with gradients belong to ``role``; ``count`` numbers of them
        learn.
        """
        strangers = [n for n in named if role not in n.split(".")]
        self.check(
            "trainable parameters",
            count > 0 and not strangers,
            f"{count:,} in {len(named)} tensors of {role}"
            + (f", also {strangers[:3]}" if strangers else ""),
            "Only the role's own adapter and head may train.",
        )

    def equal(self, name: str, value: float, expected: float, tolerance: float, fix: str) -> None:
        """Check a number that is known in closed form."""
        ok = math.isfinite(value) and abs(value - expected) <= tolerance
        self.check(name, ok, f"{value:.6f} (expected {expected:.6f} ± {tolerance:g})", fix)

    def no_dropout(self, first: Tensor, second: Tensor) -> None:
        """Check that two scoring passes over the same rows agree to the bit."""
        self.check(
            "dropout off in scoring",
            bool(torch.equal(first, second)),
            f"largest difference {float((first - second).abs().max()):g}",
            "A module is in training mode while it scores.",
        )

    def moved(
        self,
        before: dict[str, Tensor],
        after: dict[str, Tensor],
        frozen_before: str,
        frozen_after: str,
        opened_by: Mapping[str, tuple[str, ...]],
    ) -> None:
        """Check after step 1 that trained weights changed and the backbone's bytes did not.

        ``before`` and ``after`` hold the parameters that should learn, by name. ``opened_by`` is
        ``Method.waits``: a parameter whose gradient comes through other parameters waits for the
        second step while all of those are 0. The hashes are of the frozen weights.
        """
        waits = {
            n
            for n in before
            for part, keys in opened_by.items()
            if part in n
            and not any(before.get(n.replace(part, key), torch.zeros(1)).any() for key in keys)
        }
        still = [n for n in before if torch.equal(before[n], after[n]) and n not in waits]
        self.check(
            "weights move",
            not still,
            f"{len(before) - len(still)} of {len(before)} tensors free to move",
            f"These did not: {still[:3]}; they receive no gradient.",
        )
        self.check(
            "backbone frozen",
            frozen_before == frozen_after,
            f"sha256 {frozen_after[:8]}",
            "Training changed frozen weights.",
        )

    def stepped(self, steps: int) -> None:
        """Check that there was an optimizer step: without one the policy is still the model that it
        started from, and must not be compared as another one.
        """
        self.check(
            "optimizer steps",
            steps > 0,
            f"{steps:,}",
            "Nothing was trained: raise epochs or steps.",
        )

    def finish(self, metrics: dict[str, Any]) -> dict[str, Any]:
        """The stage's metrics with the audit's lines."""
        return {**metrics, "audit": self.lines}
