"""A language model that judges in this process."""

import json
import re
import shutil
from typing import ClassVar

import pytest
import torch
import xgrammar
from judge_endpoint import PROMPT
from safetensors.torch import load_file
from tiny import plain, tiny_model, tiny_tokenizer
from tokenizers import Tokenizer
from tokenizers.decoders import ByteFallback, ByteLevel, Fuse, Replace
from tokenizers.decoders import Sequence as DecoderSequence
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel as ByteLevelSplit
from transformers import PreTrainedTokenizerFast

from prefloop.config import BackboneConfig, JudgeConfig
from prefloop.errors import ConfigError, ModelError
from prefloop.evaluation.judges.cache import Cached, VerdictCache
from prefloop.evaluation.judges.engines import misread
from prefloop.evaluation.judges.language_model import ModelJudge
from prefloop.evaluation.judges.local import LocalModel
from prefloop.evaluation.judges.modes import Grading, Pairwise
from prefloop.evaluation.judges.open import open_grader, open_judge
from prefloop.models.load import load
from prefloop.records import Prompt


@pytest.fixture(scope="module")
def roomy(tmp_path_factory):
    """A tiny random model with a context that a judge's question fits into: rotary positions need
    no weights.
    """
    folder = tiny_model(tmp_path_factory.mktemp("judge") / "roomy", "llama-wide")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 4096}))
    return folder


def test_a_local_model_is_asked_the_same_words_and_says_what_it_says_alone(roomy, monkeypatch):
    monkeypatch.setattr(
        "torch.cpu._is_amx_tile_supported", lambda: False
    )  # float32, as the other opinion
    items = [
        (PROMPT, "seven", "4"),
        (PROMPT, "a much longer answer than the other one", "b"),
        (PROMPT, "2", "3"),
    ]
    judge = open_judge(
        f"local:{roomy}",
        JudgeConfig(max_tokens=6, max_concurrency=2, price_prompt=1, price_completion=1),
    )
    verdicts = judge.ask(items)
    model, tokenizer = plain(roomy), tiny_tokenizer()
    for item, verdict in zip(items, verdicts, strict=True):
        messages = Pairwise().question(*item).messages(structured=False)
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=6,
            do_sample=False,
            eos_token_id=tokenizer.eos_token_id,
        )
        assert (
            verdict.raw[0]
            == tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip()
        )
        assert verdict.unparsable == 1 and len(verdict.raw) == 2, "asked again, and babbling still"
        assert verdict.prompt_tokens > 2 * ids.shape[1]
    usage = judge.usage
    assert (usage.requests, usage.retries) == (6, 0)
    assert usage.prompt_tokens == sum(v.prompt_tokens for v in verdicts)
    assert usage.cost == pytest.approx((usage.prompt_tokens + usage.completion_tokens) / 1e6)


class Canned:
    """An engine whose replies are tokens of given texts."""

    context = None

    def __init__(self, texts):
        self.texts, self.tokenizer, self.batches = iter(texts), tiny_tokenizer(), []

    def continuations(self, prompts_ids, schemas):
        self.batches.append(len(prompts_ids))
        return [self.tokenizer(next(self.texts))["input_ids"] for _ in prompts_ids]


def test_a_local_models_dialogues_go_on_in_step_and_arrive_as_they_end(roomy):
    model = LocalModel(str(roomy), roomy.parent, batch_size=3)
    model._engine = Canned(["[[A]]", "Hm.", "[[B]]", "Well. [[C]]", "[[A]]"])
    arrived = []
    verdicts = ModelJudge(model).ask(
        [(PROMPT, f"a{i}", "b") for i in range(4)], lambda index, verdict: arrived.append(index)
    )
    assert [v.score for v in verdicts] == [1.0, 0.5, 0.0, 1.0]
    assert verdicts[1].raw == ("Hm.", "Well. [[C]]") and verdicts[1].unparsable == 0
    assert (model._engine.batches, arrived) == ([3, 1, 1], [0, 2, 1, 3])


def test_a_question_over_a_local_models_context_fails_alone(roomy):
    judge = open_judge(f"local:{roomy}", JudgeConfig(max_tokens=6))
    failed, fine = judge.ask([(PROMPT, "word " * 4000, "b"), (PROMPT, "a", "b")])
    assert "tokens; with --max-tokens 6 that is over the model's context of 4096" in failed.failed
    assert not fine.failed


def test_a_cached_evaluation_does_not_load_the_local_model(roomy, tmp_path, monkeypatch):
    for _ in range(2):
        judge = Cached(
            open_judge(f"local:{roomy}", JudgeConfig(max_tokens=4)), VerdictCache(tmp_path / "c")
        )
        judge.ask([(PROMPT, "a", "b")])
        monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", None)


def test_a_template_without_a_system_role_gets_the_instructions_in_the_first_turn(tmp_path, roomy):
    model = LocalModel(str(roomy), roomy.parent)
    model._chat.tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    )
    ids = model._prompt_ids(Pairwise().question(PROMPT, "a", "b").messages(False))
    text = model._chat.tokenizer.decode(ids)
    assert text.startswith("<user>You are an impartial judge.") and "=== END RESPONSE B" in text


def test_a_local_model_that_is_not_there_says_where_it_was_looked_for():
    with pytest.raises(ModelError, match=r"model folder '\./absent' does not exist"):
        open_judge("local:./absent")
    with pytest.raises(ConfigError, match="names nothing"):
        open_judge("local:")


def test_vllm_in_this_process_holds_a_local_judges_replies_to_the_schema(roomy):
    class Bare(Grading):
        """Grades without reasons: words without sense would not end."""

        schema: ClassVar = {
            **Grading.schema,
            "properties": {"grade": {"enum": [1, 2, 3]}},
            "required": ["grade"],
        }

    grader = open_grader(f"local:{roomy}", JudgeConfig(mode="grade", engine="vllm", max_tokens=16))
    grader.form = Bare()
    grades = grader.ask([(Prompt("p", PROMPT), text) for text in ("seven", "4", "a longer one")])
    try:
        assert all(grade.score in (1, 2, 3) and grade.unparsable == 0 for grade in grades)
        assert [json.loads(grade.raw[0]) for grade in grades] == [
            {"grade": grade.score} for grade in grades
        ]
        assert grader.usage.requests == 3
        assert (
            "model's context of 4096"
            in grader.ask([(Prompt("p", PROMPT), "word " * 4000)])[0].failed
        )
    finally:
        grader.model.close()


def test_an_xgrammar_that_misreads_a_tokenizer_holds_nothing_to_a_schema(monkeypatch):
    text = '{"grade": "a b"}'
    pieces = sorted(ByteLevelSplit.alphabet())
    core = Tokenizer(BPE({piece: i for i, piece in enumerate(pieces)}, []))
    core.pre_tokenizer = ByteLevelSplit(add_prefix_space=False, use_regex=False)
    core.decoder = DecoderSequence(
        [ByteFallback(), Fuse(), Replace("▁", " "), ByteLevel()]
    )  # as transformers 5.17 makes it of a GGUF
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="}")
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert misread(tokenizer) == ""
    monkeypatch.setattr(
        xgrammar.TokenizerInfo, "_detect_vocab_type_from_vocab", lambda _: None
    )  # what came with 0.2.8
    assert re.fullmatch(r"xgrammar [\d.]+ misreads this model's tokenizer.*", misread(tokenizer))


def test_pickled_weights_are_not_loaded(roomy, tmp_path):
    copy = shutil.copytree(roomy, tmp_path / "pickled")
    weights = load_file(copy / "model.safetensors")
    torch.save(weights, copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"pytorch_model.bin is a pickle, which could run code"):
        _ = LocalModel(str(copy), tmp_path)._engine
    with pytest.raises(ModelError, match=r"pytorch_model.bin is a pickle, which could run code"):
        load(
            BackboneConfig(model="pickled", precision="fp32", max_length=96),
            copy,
            torch.device("cpu"),
        )
