"""Chat template → prompt ids and response ids: one BOS, the end-of-turn token inside the loss.

Prompt and response are tokenised apart and joined as ids, so the prompt is a prefix of prompt + response by construction, and the
ids that the sampler saw are the ids that the trainer scores.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefloop.errors import ConfigError, ModelError
from prefloop.records import Message

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


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

        Raises ``ModelError`` when the tokenizer has no template and none was named.
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

    def prompt_ids(self, prompt: Sequence[Message]) -> list[int]:
        """Token ids of a conversation up to where the assistant answers; exactly the BOS tokens that the template writes."""
        messages = [{"role": m.role, "content": m.content} for m in prompt]
        text = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        bos = self.tokenizer.bos_token_id
        if bos is not None and self.adds_bos and (not ids or ids[0] != bos):
            ids = [bos, *ids]
        return ids

    def response_ids(self, text: str, finished: bool = True) -> list[int]:
        """Token ids of an answer; ends in the end-of-turn token unless the answer was cut (``finished=False``)."""
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return [*ids, self.stop_id] if finished else ids

    def decode(self, response_ids: Sequence[int]) -> str:
        """Text of a sampled response without its end-of-turn token."""
        return self.tokenizer.decode(response_ids, skip_special_tokens=True).strip()

    @property
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
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": "q"}, {"role": "assistant", "content": words}], tokenize=False
    )
    tail = tokenizer(rendered[rendered.rindex(words) + len(words) :], add_special_tokens=False)["input_ids"]
    # Some tokenizers (Phi-3) mark their turn end special only in the table of added tokens, and write EOS after it.
    special = {*tokenizer.all_special_ids, *(i for i, token in tokenizer.added_tokens_decoder.items() if token.special)}
    for token in tail:
        if token in special:
            return token
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"{tokenizer.name_or_path}: the chat template writes no end-of-turn token and the tokenizer has no EOS"
        )
    return tokenizer.eos_token_id
