"""Chat template → token ids and what of them is learnt.

Prompt and answer are tokenized apart and joined as ids, so the prompt is a prefix of prompt + answer by construction, and the
ids that the sampler saw are the ids that the trainer scores. What an assistant says is taken from the template's own rendering:
from where its generation prompt ends to the end-of-turn token. A template that rewrites earlier turns (most drop their thoughts)
gives several sequences, each turn learnt behind the very text that the model will see before it.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefloop.data.rendering import Renderer
from prefloop.data.tokens import Tokens
from prefloop.errors import ConfigError, DataError, ModelError
from prefloop.records import Message, Response, answer_turns, tools_of

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_THINK, _END_THINK = "<think>", "</think>"
_OPENED = re.compile(r"<think>\s*$")


@dataclasses.dataclass(frozen=True)
class ChatFormat:
    """How conversations become token ids for one tokenizer."""

    tokenizer: Any
    stop_id: int
    """The token that ends an assistant turn; part of every finished response and of its loss."""
    pad_id: int

    @classmethod
    def load(cls, tokenizer: Any, template: str = "model") -> ChatFormat:
        """Set the chat template ('model', 'chatml' or a Jinja file) and find the end-of-turn token.

        Raises ``ModelError`` when the tokenizer has no template and none was named, or when the template cannot write an answer.
        """
        if template == "chatml":
            missing = [
                t
                for t in ("<|im_start|>", "<|im_end|>")
                if tokenizer.convert_tokens_to_ids(t) in (None, tokenizer.unk_token_id)
            ]
            if missing:
                raise ModelError(
                    f"backbone.chat_template: chatml needs the tokens {missing}, which this tokenizer lacks"
                )
            tokenizer.chat_template = CHATML
        elif template != "model":
            path = Path(template)
            if not path.is_file():
                raise ConfigError(f"backbone.chat_template: '{template}' is neither 'model', 'chatml' nor a file")
            tokenizer.chat_template = path.read_text(encoding="utf-8")
        if not tokenizer.chat_template:
            raise ModelError(
                f"{tokenizer.name_or_path} has no chat template: set backbone.chat_template to 'chatml' or to a Jinja file that renders its format"
            )
        stop_id = _end_of_turn(tokenizer)
        pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else stop_id
        return cls(tokenizer, stop_id, pad_id)

    @functools.cached_property
    def renderer(self) -> Renderer:
        """The template at work."""
        return Renderer(self.tokenizer)

    @functools.cached_property
    def stop(self) -> str:
        """The text of the token that ends an assistant turn."""
        return str(self.tokenizer.convert_ids_to_tokens(self.stop_id))

    def prompt_ids(self, prompt: Sequence[Message]) -> list[int]:
        """Token ids of a conversation up to where the assistant answers; exactly the BOS tokens that the template writes.

        Raises ``DataError`` where the template refuses the conversation or leaves a part of it out.
        """
        return self._with_bos(self.renderer.ids(self.renderer.prompt(prompt, tools_of(prompt))))

    def response_ids(self, text: str, finished: bool = True) -> list[int]:
        """Token ids of a sampled answer behind its generation prompt: what ``decode`` gave, and the end-of-turn token unless it was cut."""
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return [*ids, self.stop_id] if finished else ids

    def answer(self, prompt: Sequence[Message], answer: Response) -> Tokens:
        """Token ids of an answer behind ``prompt_ids(prompt)``; results of tools and what the template writes around turns are not learnt.

        A sampled answer (``meta`` says whether it is finished) is what the sampler wrote; any other one is as the template writes it.
        Raises ``DataError`` where the template refuses it, leaves a part out, or writes it otherwise than its generation prompt begins it.
        """
        ids: list[int]
        learn: list[bool]
        if "finished" in answer.meta and not answer.turns:
            ids = self.response_ids(answer.text, answer.finished)
            return Tokens(ids, [True] * len(ids))
        turns, tools = [*prompt, *answer_turns(answer)], tools_of(prompt)
        ids, learn, joined, written = [], [], False, ""
        for place in range(len(prompt), len(turns)):
            if turns[place].role != "assistant":
                continue
            before, body, met = self._turn(turns[: place + 1], tools)
            if written:
                if not before.startswith(written):
                    raise DataError(
                        "the model's chat template rewrites the answer's earlier turns, so they cannot be learnt as one answer"
                    )
                context = self.renderer.ids(before[len(written) :])
                ids, learn = [*ids, *context], [*learn, *[False] * len(context)]
            said = self.renderer.ids(body)
            ids, learn = [*ids, *said], [*learn, *[turns[place].learn] * len(said)]
            written, joined = before + body, joined or met
        if not any(learn):
            raise DataError("the answer holds no assistant turn to learn")
        return Tokens(ids, learn, joined)

    def sequences(self, prompt: Sequence[Message], turns: Sequence[Message], every: bool = True) -> list[Tokens]:
        """A conversation as sequences to train on: every assistant turn that may be learnt, or the last one alone.

        One sequence, unless the template rewrites turns once others follow. Where the template marks the assistant's words by
        ``{% generation %}``, its marks are the mask. Raises ``DataError`` as ``answer`` does, and where no turn may be learnt.
        """
        whole, tools = [*prompt, *turns], tools_of(prompt)
        # A turn that opens the conversation answers nothing.
        learnt = [i for i, turn in enumerate(whole) if i and turn.role == "assistant" and turn.learn]
        if not learnt:
            raise DataError("no assistant turn is to be learnt")
        learnt = learnt if every else learnt[-1:]
        marked = self._marked(whole, tools, learnt) if self.renderer.marks_turns else None
        return [marked] if marked else self._walked(whole, tools, learnt)

    def _walked(self, whole: list[Message], tools: list[dict[str, Any]], learnt: list[int]) -> list[Tokens]:
        out: list[tuple[list[int], list[bool], bool]] = []
        ids: list[int]
        learn: list[bool]
        written = None
        for place in learnt:
            before, body, met = self._turn(whole[: place + 1], tools)
            if written is not None and before.startswith(written):
                ids, learn, joined = out.pop()
                context = self.renderer.ids(before[len(written) :])
            else:
                ids, learn, joined = [], [], False
                context = self._with_bos(self.renderer.ids(before))
            said = self.renderer.ids(body)
            marks = [*learn, *[False] * len(context), *[True] * len(said)]
            out.append(([*ids, *context, *said], marks, joined or met))
            written = before + body
        return [Tokens(*parts) for parts in out]

    def _marked(self, whole: list[Message], tools: list[dict[str, Any]], learnt: list[int]) -> Tokens | None:
        """The conversation under the template's own marks; nothing where they do not say which turn is which, or leave out its end."""
        text, spans = self.renderer.render_marked(whole, tools)
        assistants = [i for i, turn in enumerate(whole) if turn.role == "assistant"]
        if len(spans) != len(assistants) or not all(self.stop in text[start:end] for start, end in spans):
            return None
        self.renderer.require_whole(whole, tools, text)
        for place in learnt:
            start, end = spans[assistants.index(place)]
            self._require_thoughts(whole[place], text[start:end])
        ids: list[int] = []
        learn: list[bool] = []
        edges = [0, *itertools.chain(*spans), len(text)]
        for part, (start, end) in enumerate(itertools.pairwise(edges)):
            piece = self.renderer.ids(text[start:end]) if end > start else []
            ids += piece if part else self._with_bos(piece)
            learn += [part % 2 == 1 and assistants[part // 2] in learnt] * (len(ids) - len(learn))
        return Tokens(ids, learn)

    def _turn(self, turns: Sequence[Message], tools: list[dict[str, Any]]) -> tuple[str, str, bool]:
        """The text before the last turn, what the assistant says in it with its end, and whether thoughts met an opened ``<think>``."""
        *before_turns, turn = turns
        before = self.renderer.prompt(before_turns, tools)
        whole = self.renderer.render(turns, tools, generate=False)
        if whole.startswith(before):
            body, joined = whole[len(before) :], False
        else:
            body, joined = self._behind_think(before, whole, turn), True
        body = self._ended(body)
        self.renderer.require_whole([turn], [], body)
        self._require_thoughts(turn, body)
        return before, body, joined

    def _require_thoughts(self, turn: Message, written: str) -> None:
        thoughts = (turn.reasoning_content or "").strip()
        if thoughts not in self.renderer.shown(written):
            raise DataError(
                "the model's chat template leaves out reasoning_content: put the thoughts into the text between <think> and </think>, "
                "or choose another backbone.chat_template"
            )

    def _behind_think(self, before: str, whole: str, turn: Message) -> str:
        """What the assistant says behind a generation prompt that opens ``<think>`` where the template's rendering does not go on from there."""
        opened = _OPENED.search(before)
        if not opened or not whole.startswith(before[: opened.start()]):
            at = next((i for i, (a, b) in enumerate(zip(before, whole, strict=False)) if a != b), len(whole))
            raise DataError(
                f"the model's chat template writes this answer as {self.renderer.shown(whole[at : at + 30])!r} where its generation prompt says "
                f"{self.renderer.shown(before[at : at + 30])!r}: choose another backbone.chat_template"
            )
        said = whole[opened.start() :]
        if said.startswith(_THINK):
            return said[len(_THINK) :].lstrip("\n")
        thoughts, end, _ = (turn.content if _END_THINK in turn.content else "").partition(_END_THINK)
        thoughts = turn.reasoning_content or thoughts.removeprefix(_THINK)
        if _END_THINK in said:
            return said
        if not end and not turn.reasoning_content:
            raise DataError(
                "the generation prompt opens <think>, and this answer holds no thoughts: give it some (reasoning_content, or <think>…</think> "
                "ahead of the text), or choose a backbone.chat_template that does not open them"
            )
        return f"{self.renderer.guarded_text(thoughts.strip())}\n{_END_THINK}\n\n{said}"

    def _ended(self, body: str) -> str:
        """What the assistant says, up to and with the token that ends its turn."""
        at = body.find(self.stop)
        if at >= 0:
            return body[: at + len(self.stop)]
        text = body.rstrip()
        # Some templates end a call of a tool by another token than an answer.
        return text if any(text.endswith(token) for token in self.renderer.controls) else text + self.stop

    def _with_bos(self, ids: list[int]) -> list[int]:
        bos = self.tokenizer.bos_token_id
        return [bos, *ids] if self.adds_bos and ids[:1] != [bos] else ids

    @functools.cached_property
    def control_ids(self) -> frozenset[int]:
        """Ids of the tokenizer's control tokens."""
        return frozenset(self.tokenizer.convert_tokens_to_ids(self.renderer.controls))

    def ended(self, ids: Sequence[int]) -> bool:
        """Whether an answer has its end: a control token, behind which a template may write a line break."""
        return any(token in self.control_ids for token in ids[-2:])

    def marked(self, tokens: Tokens, longest: int = 1500) -> str:
        """A training example for people to read, what is learnt between ⟦ and ⟧; a long one loses its middle."""
        parts = []
        for learnt, run in itertools.groupby(zip(tokens.ids, tokens.learn, strict=True), key=lambda pair: pair[1]):
            text = self.tokenizer.decode([token for token, _ in run], skip_special_tokens=False)
            parts.append(f"⟦{text}⟧" if learnt else text)
        whole = "".join(parts)
        return whole if len(whole) <= longest else f"{whole[: longest // 2]} … {whole[-(longest // 2) :]}"

    def decode(self, response_ids: Sequence[int]) -> str:
        """Text of a sampled response without its end-of-turn token."""
        return self.tokenizer.decode(response_ids, skip_special_tokens=True).strip()

    @functools.cached_property
    def adds_bos(self) -> bool:
        """Whether the tokenizer puts a BOS before plain text: then a template without one still needs it."""
        bos = self.tokenizer.bos_token_id
        return bos is not None and self.tokenizer("a")["input_ids"][:1] == [bos]

    def doubled_bos(self, ids: Sequence[int]) -> bool:
        """True when a sequence starts with two BOS tokens (template plus tokenizer)."""
        bos = self.tokenizer.bos_token_id
        return bos is not None and list(ids[:2]) == [bos, bos]


def _end_of_turn(tokenizer: Any) -> int:
    """The first special token after an assistant's words, as the template writes it; else the tokenizer's EOS."""
    words = "prefloop probe"
    renderer = Renderer(tokenizer)
    try:
        rendered = renderer.render([Message("user", "q"), Message("assistant", words)], [], generate=False)
    except DataError as error:
        raise ModelError(f"{tokenizer.name_or_path}: {error} (a question and its answer)") from None
    if words not in rendered:
        raise ModelError(f"{tokenizer.name_or_path}: the chat template leaves out what the assistant says")
    tail = tokenizer(rendered[rendered.rindex(words) + len(words) :], add_special_tokens=False)["input_ids"]
    special = set(tokenizer.convert_tokens_to_ids(renderer.controls))
    for token in tail:
        if token in special:
            return token
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"{tokenizer.name_or_path}: the chat template writes no end-of-turn token and the tokenizer has no EOS"
        )
    return tokenizer.eos_token_id
