"""A trainer of TRL on a role of the backbone: its arguments, its rows as token ids, its reference,
and checkpoints that are whole or not there.

TRL takes a PEFT model as it comes: the adapter called ``default`` learns, and a frozen copy that
TRL calls ``ref`` is the reference. Four things would go wrong without a word, and are seen to here:

- TRL fills ``ref`` from parameters that have ``.default.`` in their names, which methods such as
  VeRA and IA3 do not have, and after PEFT has drawn it at random. Both adapters are read from the
  SFT artifact again once the trainer is made.
- On 4-bit weights TRL rounds what learns to bfloat16. It is float32 again before the first step.
- PEFT's ``set_adapter``, by which TRL turns to the reference and back, reaches neither fused layers
  nor goes back to the role that ``Backbone.activate`` chose.
- A trainer that samples ends answers at the tokenizer's EOS, which is not every template's end of
  a turn.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import importlib
import logging
import math
import os
import re
import shutil
import typing
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from datasets import Dataset, disable_progress_bars
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError, PydanticUserError
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig as NeutralDefaults
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import PrinterCallback

from prefloop.artifacts.adapter_config import read_adapter
from prefloop.base.console import progress, shortened
from prefloop.base.interrupt import waiting
from prefloop.base.redact import short
from prefloop.base.sealed import read_folder, remove, seal_folder
from prefloop.config.trl import TRAINERS
from prefloop.errors import ConfigError, nearest
from prefloop.models.backbone import Backbone
from prefloop.models.folder import read_tensors
from prefloop.runs.runtime import Runtime
from prefloop.runs.work import Work
from prefloop.training.audit import Audit
from prefloop.training.loop import KEPT, end_where_asked, newest_whole

POLICY, REFERENCE = "default", "ref"
"""What TRL calls the adapter that learns, and its frozen copy."""
LEARNT = "learnt.safetensors"
"""In a checkpoint: the adapter's parameters."""
_CHECKPOINT = re.compile(r"checkpoint-(\d+)", re.ASCII)
_CURVES = {
    "learning_rate": "lr",
    "rewards/accuracies": "accuracy",
    "rewards/margins": "margin",
    "reward": "reward_mean",
    "completions/mean_length": "length_mean",
}
"""TRL's names of what it logs, by those that prefloop's report and trackers know."""
_AT_START = ("rewards/chosen", "rewards/rejected", "kl")
"""What TRL logs of trainers with a reference that is 0 while the policy equals it."""


def trainer_class(name: str) -> Any:
    """TRL's class of one of ``TRAINERS``."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    return getattr(importlib.import_module(TRAINERS[name].module), name)


def checked_arguments(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments for the configuration of a trainer, in the types of its fields.

    Raises ``ConfigError`` for one that it does not have, with the nearest, or whose value it cannot
    take.
    """
    kind = _arguments_class(name)
    known = {field.name for field in dataclasses.fields(kind) if field.init}
    hints, out = typing.get_type_hints(kind), {}
    for key, value in given.items():
        if key not in known:
            raise ConfigError(
                f"trl.args: {kind.__name__} has no argument {short(key)} ({nearest(key, known)})"
            )
        try:
            adapter: TypeAdapter[Any] = TypeAdapter(
                hints[key], config=ConfigDict(arbitrary_types_allowed=True)
            )
        except (PydanticSchemaGenerationError, PydanticUserError):
            out[key] = value  # a type that pydantic does not know: the class itself will look
            continue
        try:
            out[key] = adapter.validate_python(value)
        except ValidationError as error:
            said = error.errors(include_url=False, include_context=False)[0]["msg"]
            raise ConfigError(f"trl.args.{key}: {said} (found {short(value)})") from None
    return out


def arguments(
    name: str, given: Mapping[str, Any], folder: Path, every: int, runtime: Runtime | None = None
) -> TrainingArguments:
    """The configuration of a trainer: ``given`` over TRL's defaults, and what prefloop sets.

    Without a ``runtime`` model, sampling and seed are left open, to check the rest. Raises
    ``ConfigError`` for what the class refuses.
    """
    kind = _arguments_class(name)
    cuda = torch.cuda.is_available()
    own: dict[str, Any] = {
        "output_dir": str(folder),
        "use_cpu": not cuda,
        "bf16": False,
        "save_strategy": "steps",
        "save_steps": every,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "report_to": "none",
        "disable_tqdm": True,
        "disable_dropout": True,
        "completion_only_loss": True,
        "activation_checkpointing": False,
    }
    if runtime is not None:
        backbone, generation = runtime.backbone, runtime.generation
        own |= {
            "bf16": backbone.compute_dtype == torch.bfloat16,
            "activation_checkpointing": backbone.config.gradient_checkpointing == "block",
            "activation_checkpointing_kwargs": {"use_reentrant": False},
            "max_length": backbone.config.max_length,
            "temperature": generation.temperature,
            "max_completion_length": generation.max_new_tokens,
            "seed": runtime.seed,
        }
    known = {field.name for field in dataclasses.fields(kind)}
    own = {key: value for key, value in own.items() if key in known}
    with _refusals(kind.__name__):
        made = kind(**checked_arguments(name, given), **own)
        if made.n_gpu > 1:
            made._n_gpu = 1  # else transformers puts nn.DataParallel around the model
    return made


def _arguments_class(name: str) -> Any:
    trainer_class(name)
    module = importlib.import_module(TRAINERS[name].module)
    return getattr(module, name.removesuffix("Trainer") + "Config")


@contextlib.contextmanager
def _refusals(who: str) -> Iterator[None]:
    """What TRL refuses in its own words as a ``ConfigError``."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (ValueError, TypeError, NotImplementedError, ImportError) as error:
        raise ConfigError(
            f"trl.args: {who} refuses them: {shortened(' '.join(str(error).split()), 400)}"
        ) from error


@dataclasses.dataclass(frozen=True)
class Seat:
    """A backbone on which TRL trains: role ``default`` is active and learns."""

    backbone: Backbone
    start: Path
    """The SFT adapter."""
    dropout: bool
    """Whether the adapter's dropout is on while it learns."""

    def learn(self) -> None:
        """Run the policy, and let its parameters alone take gradients."""
        self.backbone.activate(POLICY, dropout=self.dropout)
        self.backbone.model.active_adapter = POLICY
        for parameter in self.backbone.parameters(POLICY):
            parameter.requires_grad_(True)

    def read_again(self) -> None:
        """Put the SFT adapter's own float32 numbers into the policy, and into the reference."""
        saved = read_tensors(self.start, str(self.backbone.device))
        described = read_adapter(self.start)
        for role in (POLICY, REFERENCE):
            if role in self.backbone.model.peft_config:
                self.backbone.roles.add(role)
                self.backbone.made_anew(role)
                for parameter in self.backbone.parameters(role):
                    parameter.data = parameter.data.float()
                self.backbone.method.restore(role, saved, described)

    def switch(self, role: str, **_: Any) -> None:
        """Take the place of PEFT's ``set_adapter`` on the model: what learns stays what it is."""
        self.backbone.active.role = role
        self.backbone.method.activate(role)
        self.backbone.model.active_adapter = role
        for known in {POLICY, REFERENCE} & self.backbone.roles:
            for parameter in self.backbone.parameters(known):
                parameter.requires_grad_(known == POLICY)

    @contextlib.contextmanager
    def lent(self) -> Iterator[None]:
        """Let the block run other roles (``Backbone.role``), and go back to training after it."""
        modes = [(module, module.training) for module in self.backbone.model.modules()]
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode
            self.learn()


@contextlib.contextmanager
def seated(work: Work, sft: Path, dropout: bool) -> Iterator[Seat]:
    """The policy on the backbone for TRL. At the end all that TRL has changed of the model is as it
    was, and its adapters are gone.
    """
    backbone = work.runtime.backbone
    model, bare = backbone.model, backbone.causal_lm
    forwards = [(m, m.__dict__.get("forward")) for m in (model, bare)]
    text = bare.config.get_text_config()
    generation, pad, active = bare.generation_config, text.pad_token_id, model.active_adapter
    bare.generation_config = NeutralDefaults(eos_token_id=backbone.chat.stop_id)
    seat = Seat(backbone, sft, dropout)
    try:
        backbone.add_role(POLICY, start=sft)
        seat.learn()
        model.set_adapter = seat.switch
        yield seat
    finally:
        model.__dict__.pop("set_adapter", None)
        model.__dict__.pop("_original_forward", None)
        for module, forward in forwards:
            module.__dict__.pop("forward", None)
            if forward is not None:
                module.forward = forward
        if getattr(bare, "_require_grads_hook", None) is not None:
            bare.disable_input_require_grads()
        bare.generation_config, text.pad_token_id = generation, pad
        model.eval()
        # A trainer that could not be made may have left its reference.
        for role in {*backbone.roles, *({REFERENCE} & set(model.peft_config))}:
            backbone.roles.add(role)
            backbone.drop_role(role)
        model.active_adapter = active


class Rows(Protocol):
    """What a trainer learns from."""

    rows: list[dict[str, Any]]

    def ids_of(self, turns: Sequence[Mapping[str, Any]]) -> list[int]:
        """The token ids of a prompt in ``rows``."""
        ...


def make(
    name: str,
    seat: Seat,
    made: TrainingArguments,
    data: Rows,
    log: TrainerCallback,
    **more: Any,
) -> Any:
    """The trainer on ``data``, ready to train from the SFT adapter. Raises ``ConfigError`` for what
    it refuses.
    """
    for chatty in ("trl", "transformers", "datasets"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    disable_progress_bars()
    backbone, kind = seat.backbone, trainer_class(name)
    tokenizer = copy.deepcopy(backbone.chat.tokenizer)  # TRL gives it a pad token
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token_id = backbone.chat.pad_id
    own = {"seat": seat, "ids_of": staticmethod(data.ids_of)}
    ours = type(name, (*_OWN[name], Sealed, kind), own)
    with _refusals(name):
        trainer = ours(
            model=backbone.model,
            args=made,
            train_dataset=Dataset.from_list(data.rows),
            processing_class=tokenizer,
            callbacks=[log],
            **more,
        )
    trainer.remove_callback(PrinterCallback)
    seat.read_again()
    seat.learn()
    if "generation_config" in vars(trainer):
        trainer.eos_token_ids = [backbone.chat.stop_id]
        trainer.generation_config.eos_token_id = backbone.chat.stop_id
        trainer.generation_config.use_cache = True
        trainer.generation_kwargs["eos_token_id"] = backbone.chat.stop_id
    return trainer


class AsGiven:
    """Rows of ``DPOTrainer`` that are token ids already."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
        return dataset


class Mismatched:
    """Rows of ``KTOTrainer`` that are token ids already, with the responses of other prompts that
    its KL is estimated from.
    """

    calculate_KL: bool

    def _prepare_dataset(self, dataset: Dataset, _: Any, args: Any, *__: Any) -> Dataset:
        if not self.calculate_KL:
            return dataset
        size = args.per_device_train_batch_size
        columns = dataset.to_dict()
        others: list[list[int]] = []
        for start in range(0, len(dataset), size):
            batch = slice(start, start + size)
            others += mismatched(columns["prompt_ids"][batch], columns["completion_ids"][batch])
        return dataset.add_column("KL_completion_ids", others)


def mismatched(prompts: Sequence[Any], responses: Sequence[Any]) -> list[Any]:
    """The responses of a batch turned on, by the least number of places that gives the fewest
    prompts a response of their own.

    TRL turns them by one, which is no mismatch for neighbors that share a prompt.
    """
    count = len(prompts)
    turns = range(1, max(2, count))
    own = {k: sum(prompts[i] == prompts[i - k] for i in range(count)) for k in turns}
    best = min(turns, key=own.__getitem__)
    return [responses[i - best] for i in range(count)]


class Labelled:
    """Rows of ``CPOTrainer`` and ``ORPOTrainer`` from token ids."""

    def tokenize_row(self, feature: Mapping[str, Any], *_: Any, **__: Any) -> dict[str, Any]:
        prompt = feature["prompt_ids"]
        row = {"prompt_input_ids": prompt, "prompt_attention_mask": [1] * len(prompt)}
        for side in ("chosen", "rejected"):
            answer = feature[f"{side}_ids"]
            row[f"{side}_input_ids"] = prompt + answer
            row[f"{side}_attention_mask"] = [1] * len(prompt + answer)
            row[f"{side}_labels"] = [-100] * len(prompt) + answer
        return row


class Prompted:
    """Prompts of trainers that sample, as the token ids that prefloop made of them."""

    ids_of: Callable[[Any], list[int]]

    def _tokenize_prompts(self, prompts: Sequence[Any]) -> tuple[list[list[int]], None, dict]:
        return [self.ids_of(prompt) for prompt in prompts], None, {}


_OWN: Mapping[str, tuple[type, ...]] = {
    "DPOTrainer": (AsGiven,),
    "KTOTrainer": (Mismatched,),
    "CPOTrainer": (Labelled,),
    "ORPOTrainer": (Labelled,),
    "GRPOTrainer": (Prompted,),
    "RLOOTrainer": (Prompted,),
    "GMPOTrainer": (Prompted,),
    "SFTTrainer": (),  # takes token ids as it is
}


class Sealed:
    """A trainer whose checkpoints hold the adapter and are whole or not there; it tells nobody that
    it runs.
    """

    seat: Seat
    args: Any
    state: Any

    def _send_telemetry(self) -> None:
        """Nothing leaves this machine."""

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """``prefloop export`` writes the card."""

    def _get_output_dir(self, trial: Any) -> str:
        """Where a checkpoint is written before it gets its name."""
        return str(Path(self.args.output_dir) / "partial")

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """A checkpoint of this step; older ones go. A run that is asked to end then ends."""
        folder, partial = Path(self.args.output_dir), Path(self._get_output_dir(trial))
        shutil.rmtree(partial, ignore_errors=True)
        super()._save_checkpoint(model, trial)  # type: ignore[misc]
        made = partial / f"checkpoint-{self.state.global_step}"
        seal_folder(made, folder / made.name, {})
        for old in checkpoints(folder)[:-KEPT]:
            remove(old)
        end_where_asked(self.state.global_step, self.state.max_steps)

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None
    ) -> None:
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        learnt = self.seat.backbone.named_parameters(POLICY)
        save_file({n: p.detach().cpu().contiguous() for n, p in learnt.items()}, folder / LEARNT)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        saved = load_file(Path(resume_from_checkpoint) / LEARNT)
        with torch.no_grad():
            for name, parameter in self.seat.backbone.named_parameters(POLICY).items():
                parameter.copy_(saved[name])


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first."""
    return sorted(
        (place for place in folder.glob("checkpoint-*") if _CHECKPOINT.fullmatch(place.name)),
        key=lambda place: int(place.name.rpartition("-")[2]),
    )


def resumed_from(folder: Path) -> Path | None:
    """The newest whole checkpoint that is not of the last step, from which transformers would train
    on; that one is removed.
    """

    def read(place: Path) -> tuple[Path, bool]:
        read_folder(place)
        state = TrainerState.load_from_json(str(place / TRAINER_STATE_NAME))
        return place, state.global_step >= state.max_steps

    while found := newest_whole(checkpoints(folder), read):
        if not found[1]:
            return found[0]
        remove(found[0])
    return None


class Log(TrainerCallback):
    """What a trainer logs, into prefloop's log and progress; a loss that is no number ends it."""

    def __init__(self, work: Work, audit: Audit, reference: bool) -> None:
        self.work, self.audit, self.reference = work, audit, reference
        self.first: dict[str, Any] = {}
        self.last: dict[str, Any] = {}
        self._bar: Any = None
        self._advance: Callable[..., None] | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._bar = progress(self.work.stage, state.max_steps, "step", done=state.global_step)
        self._advance = self._bar.__enter__()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        if not logs or "loss" not in logs:
            return
        numbers = {k: float(v) for k, v in logs.items() if isinstance(v, int | float)}
        if not math.isfinite(numbers["loss"]):
            raise ConfigError(
                f"{self.work.stage}: the loss of step {state.global_step} is {numbers['loss']}:"
                " lower trl.args.learning_rate"
            )
        if self.reference and state.global_step == 1:
            exact = not args.bf16
            for key in _AT_START:
                if key in numbers:
                    self.audit.equal(
                        f"TRL's {key} before the first update",
                        numbers[key],
                        0.0,
                        1e-3 if exact else 5e-2,
                        "TRL's reference is not the SFT adapter that the policy starts from.",
                    )
        self.last = {_CURVES.get(k, k): v for k, v in numbers.items() if math.isfinite(v)}
        self.first = self.first or self.last
        self.work.emit("step", step=state.global_step, **self.last)
        if self._advance:
            self._advance(note=f"loss {numbers['loss']:.3f}")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._bar.__exit__(None, None, None)


class Moving(TrainerCallback):
    """Checks the first step that has a gradient and a learning rate: the policy moved, the backbone
    did not.
    """

    def __init__(self, seat: Seat, audit: Audit) -> None:
        self.seat, self.audit = seat, audit
        self.pending, self.checked = False, False
        named = seat.backbone.named_parameters(POLICY)
        self.before = {n: p.detach().clone() for n, p in named.items()}
        self.frozen = seat.backbone.frozen_digest()

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        **_: Any,
    ) -> None:
        if self.checked:
            return
        gradients = (p.grad for p in self.seat.backbone.parameters(POLICY))
        self.pending = any(group["lr"] > 0 for group in optimizer.param_groups) and any(
            gradient is not None and bool(gradient.any()) for gradient in gradients
        )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if not self.pending or self.checked:
            return
        backbone = self.seat.backbone
        after = {n: p.detach() for n, p in backbone.named_parameters(POLICY).items()}
        self.audit.moved(
            self.before, after, self.frozen, backbone.frozen_digest(), backbone.method.waits
        )
        self.checked, self.before = True, {}

    def require(self) -> None:
        """Raise ``AuditError`` where no step could learn: in one that samples, every answer to a
        prompt may have had the same reward.
        """
        if not self.checked:
            self.audit.check(
                "weights move",
                False,
                "no step had both a gradient and a learning rate",
                "The loss does not depend on the policy: are all rewards of a prompt equal?",
            )


class Ending(TrainerCallback):
    """A checkpoint after the step in which the run is asked to end."""

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        control.should_save |= waiting()
