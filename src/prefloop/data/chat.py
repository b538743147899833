"""Conversations as token ids by a chat template, with marks of the tokens that are learnt.

Prompt and answer are tokenized separately and joined as ids. So the prompt is a prefix of prompt +
answer by construction, and the trainer scores the ids that the sampler saw. An assistant's words
are taken from the template's own rendering: from the end of its generation prompt to the
end-of-turn token. Most templates drop the thoughts of earlier turns. A template that rewrites
earlier turns gives several sequences, and each turn is learnt after the text that the model will
see before it.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefloop.data.rendering import Renderer
from prefloop.data.spoken import Speech
from prefloop.data.tokens import Tokens
from prefloop.errors import ConfigError, DataError, ModelError
from prefloop.records import Message, Response, ToolSchema, answer_turns, tools_of

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content']"
    " + '<|im_end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{"
    " '<|im_start|>assistant\\n' }}{% endif %}"
)


@dataclasses.dataclass(frozen=True)
class ChatFormat:
    """How one tokenizer turns conversations into token ids."""

    tokenizer: Any
    stop_id: int
    """The token that ends an assistant turn. It is part of every finished response and of its loss.
    """
    pad_id: int

    @classmethod
    def load(cls, tokenizer: Any, template: str = "model") -> ChatFormat:
        """Set the chat template ('model', 'chatml' or a Jinja file) and determine the end-of-turn
        token.

        Raises ``ModelError`` when the tokenizer has no template and none is named, or when the
        template cannot write an answer; ``ConfigError`` for a template file that cannot be read.
        """
        if template == "chatml":
            missing = [
                t
                for t in ("<|im_start|>", "<|im_end|>")
                if tokenizer.convert_tokens_to_ids(t) in (None, tokenizer.unk_token_id)
            ]
            if missing:
                raise ModelError(
                    f"backbone.chat_template: chatml needs the tokens {missing}, which this"
                    " tokenizer lacks"
                )
            tokenizer.chat_template = CHATML
        elif template != "model":
            path = Path(template)
            if not path.is_file():
                raise ConfigError(
                    f"backbone.chat_template: '{template}' is neither 'model', 'chatml' nor a file"
                )
            try:
                tokenizer.chat_template = path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(
                    f"backbone.chat_template: '{template}' cannot be read as UTF-8: {error}"
                ) from None
        if not tokenizer.chat_template:
            raise ModelError(
                f"{tokenizer.name_or_path} has no chat template: set backbone.chat_template to"
                " 'chatml' or to a Jinja file that renders its format"
            )
        try:
            stop_id = _end_of_turn(tokenizer)
        except DataError as error:
            raise ModelError(
                f"{tokenizer.name_or_path}: {error} (a question and its answer)"
            ) from None
        pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else stop_id
        return cls(tokenizer, stop_id, pad_id)

    def require_within(self, rows: int) -> None:
        """Raise ``ModelError`` where tokens of the format, or of the plain vocabulary, are beyond a
        model's embeddings of ``rows`` tokens.

        Added tokens that no template writes may be beyond them: some published models have such
        tokens.
        """
        probe = [Message("user", "q"), Message("assistant", "a")]
        used = self.renderer.ids(self.renderer.render(probe, [], generate=False))
        largest = max(self.tokenizer.vocab_size - 1, self.stop_id, self.pad_id, *used)
        if largest >= rows:
            raise ModelError(
                f"{self.tokenizer.name_or_path}: the tokenizer has a token of number {largest:,},"
                f" and the model embeds {rows:,} tokens: they are not of one model"
            )

    @functools.cached_property
    def renderer(self) -> Renderer:
        """The renderer of the template."""
        return Renderer(self.tokenizer)

    @functools.cached_property
    def speech(self) -> Speech:
        """The assistant's turns under the template."""
        return Speech(self.renderer, str(self.tokenizer.convert_ids_to_tokens(self.stop_id)))

    def prompt_ids(self, prompt: Sequence[Message]) -> list[int]:
        """Token ids of a conversation up to where the assistant answers, with exactly the BOS
        tokens that the template writes.

        Raises ``DataError`` where the template refuses the conversation or leaves a part of it out.
        """
        return self._with_bos(self.renderer.ids(self.renderer.prompt(prompt, tools_of(prompt))))

    def answer(self, prompt: Sequence[Message], answer: Response) -> Tokens:
        """Token ids of an answer after ``prompt_ids(prompt)``. Results of tools, and what the
        template writes around turns, are not learnt.

        A sampled answer (its ``meta`` says whether it is finished) is encoded as the sampler wrote
        it; any other answer as the template writes it. Raises ``DataError`` where the template
        refuses it, leaves a part out, or writes it otherwise than its generation prompt begins it.
        """
        turns, tools = [*prompt, *answer_turns(answer)], tools_of(prompt)
        if "finished" in answer.meta and not answer.turns:
            spoken = self.speech.sampled(
                self.renderer.prompt(prompt, tools), answer.text, answer.finished
            )
            ids = self.renderer.ids(spoken.body, spoken.before)
            return Tokens(ids, [True] * len(ids), spoken.joined)
        sequence = _Sequence()
        for place in range(len(prompt), len(turns)):
            if turns[place].role != "assistant":
                continue
            spoken = self.speech.turn(turns[: place + 1], tools)
            if not sequence.written:
                sequence.written = spoken.before
            elif not spoken.before.startswith(sequence.written):
                raise DataError(
                    "the model's chat template rewrites the answer's earlier turns, so they cannot"
                    " be learnt as one answer"
                )
            sequence.add(self.renderer, spoken.before[len(sequence.written) :], False)
            sequence.add(self.renderer, spoken.body, turns[place].learn)
            sequence.joined |= spoken.joined
        if not any(sequence.learn):
            raise DataError("the answer holds no assistant turn to learn")
        return sequence.tokens()

    def sequences(
        self, prompt: Sequence[Message], turns: Sequence[Message], every: bool = True
    ) -> list[Tokens]:
        """Sequences to train on from a conversation: they teach every assistant turn that may be
        learnt, or, without ``every``, the last one.

        There is one sequence, unless the template rewrites turns once others follow. Where the
        template marks the assistant's words by ``{% generation %}``, these marks are the mask.
        Raises ``DataError`` as ``answer`` does, and where no turn may be learnt.
        """
        whole, tools = [*prompt, *turns], tools_of(prompt)
        # An assistant's turn that opens the conversation answers nothing.
        learnt = [
            i for i, turn in enumerate(whole) if i and turn.role == "assistant" and turn.learn
        ]
        if not learnt:
            raise DataError("no assistant turn is to be learnt")
        learnt = learnt if every else learnt[-1:]
        marked = self._marked(whole, tools, learnt) if self.renderer.marks_turns else None
        return [marked] if marked else self._walked(whole, tools, learnt)

    def _walked(
        self, whole: list[Message], tools: list[ToolSchema], learnt: list[int]
    ) -> list[Tokens]:
        out: list[_Sequence] = []
        for place in learnt:
            spoken = self.speech.turn(whole[: place + 1], tools)
            if not out or not spoken.before.startswith(out[-1].written):
                out.append(_Sequence())
                out[-1].start(self._with_bos(self.renderer.ids(spoken.before)), spoken.before)
            else:
                out[-1].add(self.renderer, spoken.before[len(out[-1].written) :], False)
            out[-1].add(self.renderer, spoken.body, True)
            out[-1].joined |= spoken.joined
        return [sequence.tokens() for sequence in out]

    def _marked(
        self, whole: list[Message], tools: list[ToolSchema], learnt: list[int]
    ) -> Tokens | None:
        """The conversation with the template's own marks; ``None`` where a learnt turn does not
        follow its generation prompt with its thoughts and its end, as it does in ``_walked``.
        """
        text, spans = self.renderer.render_marked(whole, tools)
        assistants = [i for i, turn in enumerate(whole) if turn.role == "assistant"]
        if len(spans) != len(assistants):
            return None
        for place in learnt:
            start, end = spans[assistants.index(place)]
            before, words = self.renderer.prompt(whole[:place], tools), text[start:end]
            between = before.removeprefix(text[:start])
            # A template may include the line break after the assistant's name in its marks.
            begins = before.startswith(text[:start]) and not between.strip()
            whole_turn = words.startswith(between) and self.speech.stop in words
            if not (begins and whole_turn and self.speech.holds(whole[place], before, words)):
                return None
        self.renderer.require_whole(whole, tools, text)
        sequence = _Sequence()
        edges = [0, *itertools.chain(*spans), len(text)]
        for part, (start, end) in enumerate(itertools.pairwise(edges)):
            if part == 0:
                sequence.start(self._with_bos(self.renderer.ids(text[:end])), text[:end])
            elif end > start:
                # Parts alternate: around the assistant's words, and the words themselves.
                learn = part % 2 == 1 and assistants[part // 2] in learnt
                sequence.add(self.renderer, text[start:end], learn)
        return sequence.tokens()

    def _with_bos(self, ids: list[int]) -> list[int]:
        bos = self.tokenizer.bos_token_id
        return [bos, *ids] if self.adds_bos and ids[:1] != [bos] else ids

    def ended(self, ids: Sequence[int]) -> bool:
        """Whether an answer has its end: a control token, after which a template may write a line
        break.
        """
        return any(token in self.renderer.control_ids for token in ids[-2:])

    def marked(self, tokens: Tokens, longest: int = 1500) -> str:
        """A training example for people to read. What is learnt stands between ⟦ and ⟧; a long
        example loses its middle.
        """
        parts = []
        for learnt, run in itertools.groupby(
            zip(tokens.ids, tokens.learn, strict=True), key=lambda pair: pair[1]
        ):
            text = self._shown([token for token, _ in run])
            parts.append(f"⟦{text}⟧" if learnt else text)
        whole, half = "".join(parts), longest // 2
        return whole if len(whole) <= longest else f"{whole[:half]} … {whole[-half:]}"

    def _shown(self, ids: Sequence[int]) -> str:
        """Decoded ids. Characters of a control token in a person's text are shown as ‹|im_end|›."""
        parts = []
        for control, run in itertools.groupby(
            ids, key=lambda token: token in self.renderer.control_ids
        ):
            text = self.tokenizer.decode(list(run), skip_special_tokens=False)
            parts.append(text if control else self.renderer.as_text(text))
        return "".join(parts)

    def decode(self, response_ids: Sequence[int]) -> str:
        """Text of a sampled response without its end-of-turn token."""
        return self.tokenizer.decode(response_ids, skip_special_tokens=True).strip()

    @functools.cached_property
    def adds_bos(self) -> bool:
        """Whether the tokenizer puts a BOS before plain text. A template that writes none still
        needs one then.
        """
        bos = self.tokenizer.bos_token_id
        return bos is not None and self.tokenizer("a")["input_ids"][:1] == [bos]

    def doubled_bos(self, ids: Sequence[int]) -> bool:
        """Whether a sequence starts with two BOS tokens, one by the template and one by the
        tokenizer.
        """
        bos = self.tokenizer.bos_token_id
        return bos is not None and list(ids[:2]) == [bos, bos]


@dataclasses.dataclass
class _Sequence:
    """A sequence under construction; ``written`` is its text so far."""

    ids: list[int] = dataclasses.field(default_factory=list)
    learn: list[bool] = dataclasses.field(default_factory=list)
    written: str = ""
    joined: bool = False

    def start(self, ids: list[int], text: str) -> None:
        self.ids, self.learn, self.written = ids, [False] * len(ids), text

    def add(self, renderer: Renderer, text: str, learn: bool) -> None:
        if text:
            ids = renderer.ids(text, self.written)
            self.ids += ids
            self.learn += [learn] * len(ids)
            self.written += text

    def tokens(self) -> Tokens:
        return Tokens(self.ids, self.learn, self.joined)


def _end_of_turn(tokenizer: Any) -> int:
    """The first control token after an assistant's words, as the template writes it, or else the
    tokenizer's EOS.
    """
    words = "prefloop probe"
    renderer = Renderer(tokenizer)
    rendered = renderer.render(
        [Message("user", "q"), Message("assistant", words)], [], generate=False
    )
    if words not in rendered:
        raise ModelError(
            f"{tokenizer.name_or_path}: the chat template leaves out what the assistant says"
        )
    for token in renderer.ids(rendered[rendered.rindex(words) + len(words) :], words):
        if token in renderer.control_ids:
            return token
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"{tokenizer.name_or_path}: the chat template writes no end-of-turn token and the"
            " tokenizer has no EOS"
        )
    return tokenizer.eos_token_id
