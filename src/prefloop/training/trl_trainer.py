"""A trainer of TRL on rows of token ids, whose checkpoints are whole or not there."""

from __future__ import annotations

import copy
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from datasets import Dataset, disable_progress_bars
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import PrinterCallback

from prefloop.base.console import counted, say
from prefloop.base.sealed import read_folder, remove, seal_folder
from prefloop.training.loop import KEPT, end_where_asked, newest_whole
from prefloop.training.trl_arguments import refusals, trainer_class
from prefloop.training.trl_seat import POLICY, Seat

LEARNT = "learnt.safetensors"
"""In a checkpoint: the adapter's parameters."""
_CHECKPOINT = re.compile(r"checkpoint-(\d+)", re.ASCII)


class LearntRows(Protocol):
    """What a trainer learns from."""

    @property
    def rows(self) -> list[dict[str, Any]]:
        """A row for each of its examples, with the columns that the trainer reads."""
        ...

    def ids_of(self, turns: Sequence[Mapping[str, Any]]) -> list[int]:
        """The token ids of a prompt in ``rows``."""
        ...


def make(
    name: str,
    seat: Seat,
    made: TrainingArguments,
    data: LearntRows,
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
    with refusals(name):
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
        # TRL ends an answer at the tokenizer's EOS too, which is not every template's end of turn.
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
        own = 0
        for start in range(0, len(dataset), size):
            prompts, responses = (
                columns[name][start : start + size] for name in ("prompt_ids", "completion_ids")
            )
            turn, same = mismatch(prompts)
            others += [responses[i - turn] for i in range(len(responses))]
            own += same
        if own:
            say(
                f"  KTO: the KL of {counted(own, 'row')} is estimated from a response to its own"
                " prompt; batches hold too few prompts (trl.args per_device_train_batch_size)",
                "yellow",
            )
        return dataset.add_column("KL_completion_ids", others)


def mismatch(prompts: Sequence[Any]) -> tuple[int, int]:
    """By how many places the responses of a batch are turned on for KTO's KL, so that the fewest
    prompts get a response of their own, and how many those are.

    TRL turns them by one place, which is no mismatch for neighbors that share a prompt.
    """
    count = len(prompts)
    own = {
        turn: sum(prompts[i] == prompts[i - turn] for i in range(count))
        for turn in range(1, max(2, count))
    }
    best = min(own, key=own.__getitem__)
    return best, own[best]


class Labeled:
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


class AsksForRewards:
    """Prompts of trainers that sample, as the token ids that prefloop made of them."""

    ids_of: Callable[[Any], list[int]]
    args: Any

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        """TRL's, whose order of an epoch depends on its number: a run that goes on from a
        checkpoint has not drawn those of the epochs before.
        """
        sampler = super()._get_train_sampler(dataset)  # type: ignore[misc]
        if generator := getattr(sampler, "generator", None):
            sampler.set_epoch = lambda epoch: generator.manual_seed(self.args.seed + epoch)
        return sampler

    def _tokenize_prompts(
        self, prompts: Sequence[Any]
    ) -> tuple[list[list[int]], None, dict[str, Any]]:
        return [self.ids_of(prompt) for prompt in prompts], None, {}


_OWN: Mapping[str, tuple[type, ...]] = {
    "DPOTrainer": (AsGiven,),
    "KTOTrainer": (Mismatched,),
    "CPOTrainer": (Labeled,),
    "ORPOTrainer": (Labeled,),
    "GRPOTrainer": (AsksForRewards,),
    "RLOOTrainer": (AsksForRewards,),
    "GMPOTrainer": (AsksForRewards,),
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
        try:
            super()._save_checkpoint(model, trial)  # type: ignore[misc]
        except RuntimeError:
            _require_room(folder)  # torch.save does not say that the disk is full
            raise
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


def _require_room(folder: Path) -> None:
    """Raise the ``OSError`` of a full disk if a file of 1 MiB cannot be written to ``folder``."""
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(bytes(1 << 20))
        file.flush()
        os.fsync(file.fileno())


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
