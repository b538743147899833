"""Early stopping in SFT: prompts held out, the best weights kept, the same end after a kill."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import add_random_role, load

from prefloop.artifacts.store import Artifact
from prefloop.config import AdapterConfig, BackboneConfig, DataConfig, OptimConfig, SFTStageConfig
from prefloop.config.adapters import CARDS
from prefloop.config.load import parse
from prefloop.data.packing import Document
from prefloop.data.tokens import Tokens
from prefloop.errors import ConfigError, DataError
from prefloop.models.backbone import Backbone
from prefloop.pipeline.stages.sft import SFT
from prefloop.runs.runtime import Runtime
from prefloop.training.held_out import HeldOut, SFTRow, mean_loss, split

ROWS = [
    SFTRow(Tokens([p, p, k], [False, True, True]), (p,), f"{p}")
    for p in range(10)
    for k in range(3)
]


def test_a_prompt_is_held_out_with_all_of_its_answers() -> None:
    train, held = split(ROWS, SFTStageConfig(eval_share=0.3), seed=0)
    prompts = [{row.prompt[0] for row in side} for side in (train, held)]
    assert (
        len(held) == 9 and len(prompts[1]) == 3 and not prompts[0] & prompts[1] and len(train) == 21
    )
    assert split(ROWS, SFTStageConfig(eval_share=0.3), seed=0) == (train, held)
    assert split(ROWS, SFTStageConfig(eval_share=0.3), seed=1)[1] != held
    assert split(ROWS, SFTStageConfig(), seed=0) == (ROWS, [])


def test_settings_that_contradict_each_other_are_refused() -> None:
    for settings, message in (
        ({"patience": 2}, r"sft.patience is 2 with sft.eval_share 0.*such as sft.eval_share 0.1"),
    ):
        with pytest.raises(ConfigError, match=message):
            SFT(SFTStageConfig(**settings))
        flags = [
            part
            for name, value in settings.items()
            for part in (f"--sft.{name.replace('_', '-')}", str(value))
        ]
        with pytest.raises(ConfigError, match=message):
            parse(flags, "rlhf.py", "")
    with pytest.raises(DataError, match="leaves none of 1 prompts to train on"):
        split(ROWS[:3], SFTStageConfig(eval_share=0.5), 0)


def test_the_loss_is_that_of_transformers_over_the_response_tokens(tiny_folder: Path) -> None:
    backbone = load(tiny_folder, dropout=0.5)
    add_random_role(backbone, "sft")
    documents = [Document([9, 10, 11], [[20, 21, 22]], [0]), Document([12], [[30, 31]], [1])]
    found = mean_loss(backbone, "sft", documents)
    expected = []
    with backbone.role("sft"):
        for d in documents:
            ids = torch.tensor([[*d.prompt_ids, *d.responses_ids[0]]])
            logps = (
                backbone.causal_lm(ids)
                .logits.log_softmax(-1)[0, :-1]
                .gather(1, ids[0, 1:, None])[:, 0]
            )
            expected += (-logps[len(d.prompt_ids) - 1 :]).tolist()
    assert found == pytest.approx(sum(expected) / 5, abs=1e-5)


def looks(patience: int | None, losses: dict[int, float]) -> HeldOut:
    found = object.__new__(HeldOut)
    found.config, found.losses = SFTStageConfig(eval_share=0.1, patience=patience), losses
    return found


def test_patience_counts_looks_since_the_best() -> None:
    seen = {5: 3.0, 10: 2.0, 15: 2.0, 20: 2.5, 25: 1.9}
    assert looks(2, seen).best_step() == 25 and looks(2, seen).best_step(until=20) == 10
    assert [s for s in seen if looks(1, seen).stops_at(s)] == [15, 20]
    assert [s for s in seen if looks(2, seen).stops_at(s)] == [20]
    assert not any(looks(None, seen).stops_at(s) or looks(3, seen).stops_at(s) for s in seen)


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random letters: what is learnt of some soon does not carry over to others."""
    path = tmp_path_factory.mktemp("data") / "d.jsonl"
    draw = random.Random(0)
    with path.open("w") as file:
        for i in range(12):
            answer = "".join(draw.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(12))
            file.write(
                json.dumps({"id": str(i), "prompt": f"What of {i}?", "response": answer}) + "\n"
            )
    return path


def sft(folder: Path, model: Path, demonstrations: Path, **config: Any) -> Artifact:
    adapter = {"r": 32, "alpha": 4, "dropout": 0.1, **config.pop("adapter", {})}
    backbone = BackboneConfig(
        model=str(model),
        precision="fp32",
        max_length=256,
        chat_template="chatml",
        adapter=AdapterConfig(**adapter),
    )
    optim = OptimConfig(
        name=config.pop("name", "adamw"),
        learning_rate=config.pop("learning_rate", 3e-2),
        warmup_steps=0,
        schedule="constant",
        checkpoint_every=2,
    )
    settings = {
        "epochs": 12.0,
        "batch_size": 4,
        "eval_share": 0.35,
        "eval_every": 2,
        **config,
    }
    return SFT(
        SFTStageConfig(**settings, optim=optim), DataConfig(demonstrations=demonstrations)
    ).run(Runtime(backbone, None, "transformers", 0, folder))


def events(artifact: Artifact) -> dict[int, float]:
    lines = [json.loads(line) for line in (artifact.path / "events.jsonl").read_text().splitlines()]
    return {e["step"]: e["loss"] for e in lines if e["event"] == "held_out"}


@pytest.fixture(scope="module")
def stopped(
    tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, demonstrations: Path
) -> Artifact:
    return sft(tmp_path_factory.mktemp("stopped"), tiny_folder, demonstrations, patience=3)


def test_training_stops_when_nothing_better_comes_and_keeps_the_best(
    stopped: Artifact, tiny_folder: Path, demonstrations: Path, tmp_path: Path
) -> None:
    found, seen = stopped.metrics, events(stopped)
    assert found["best_step"] == min(seen, key=seen.__getitem__) and found["held_out_loss"] == min(
        seen.values()
    )
    assert found["steps"] == max(seen) == found["best_step"] + 2 * 3 < 24
    short = found["best_step"] / 2  # two steps an epoch
    alone = sft(tmp_path, tiny_folder, demonstrations, epochs=short, eval_every=100)
    assert alone.metrics["steps"] == found["best_step"]
    one, two = (load_file(a.path / "adapter_model.safetensors") for a in (stopped, alone))
    assert all(torch.equal(one[n], two[n]) for n in two)


def test_looking_changes_nothing_of_the_training(
    stopped: Artifact, tiny_folder: Path, demonstrations: Path, tmp_path: Path
) -> None:
    often = sft(tmp_path, tiny_folder, demonstrations, eval_every=1, patience=6)
    one, two = events(stopped), events(often)
    shared = one.keys() & two.keys()
    assert (
        len(shared) >= 4
        and [one[s] for s in shared] == [two[s] for s in shared]
        and len(two) > len(one)
    )


@pytest.mark.parametrize("stop", [3, 5, "end"])
@pytest.mark.parametrize("name", ["adamw", "adamw8bit"])
def test_a_killed_run_ends_in_the_same_weights(
    stop: int | str,
    name: str,
    stopped: Artifact,
    tiny_folder: Path,
    demonstrations: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = (
        stopped
        if name == "adamw"
        else sft(tmp_path / "whole", tiny_folder, demonstrations, patience=3, name=name)
    )
    with monkeypatch.context() as patch:
        if stop == "end":  # after the last step, before the artifact is sealed
            patch.setattr(HeldOut, "save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        else:
            look = HeldOut.stepped

            def dies(self: HeldOut, step: int, last: bool) -> None:
                if step == stop:
                    raise KeyboardInterrupt
                look(self, step, last)

            patch.setattr(HeldOut, "stepped", dies)
        with pytest.raises(KeyboardInterrupt):
            sft(tmp_path / "cut", tiny_folder, demonstrations, patience=3, name=name)
    again = sft(tmp_path / "cut", tiny_folder, demonstrations, patience=3, name=name)
    assert again.status == "resumed"
    assert {k: again.metrics[k] for k in ("best_step", "held_out_loss", "steps")} == {
        k: whole.metrics[k] for k in ("best_step", "held_out_loss", "steps")
    }
    one, two = (load_file(a.path / "adapter_model.safetensors") for a in (whole, again))
    assert all(torch.equal(one[n], two[n]) for n in two)


def test_a_look_that_training_went_back_behind_is_forgotten_with_its_weights(
    tiny_folder: Path,
    demonstrations: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Killed at step 4 with the best look at step 3 and a checkpoint of step 2; step 3, done again,
    comes out worse than step 2.
    """
    losses = [3.0, 2.9, 2.5]

    def scripted(*_: Any) -> float:
        if not losses:
            raise KeyboardInterrupt
        return losses.pop(0)

    settings: dict[str, Any] = {"eval_every": 1, "epochs": 2.0}
    with monkeypatch.context() as patch:
        patch.setattr("prefloop.training.held_out.mean_loss", scripted)
        with pytest.raises(KeyboardInterrupt):
            sft(tmp_path / "cut", tiny_folder, demonstrations, **settings)
        losses[:] = [2.95, 2.96]
        capsys.readouterr()
        again = sft(tmp_path / "cut", tiny_folder, demonstrations, **settings)
    said = capsys.readouterr().out
    assert again.metrics["steps"] == 4
    assert (again.metrics["best_step"], again.metrics["held_out_loss"]) == (2, 2.9)
    short = sft(tmp_path / "short", tiny_folder, demonstrations, epochs=1.0, eval_every=100)
    one, two = (load_file(a.path / "adapter_model.safetensors") for a in (again, short))
    assert all(torch.equal(one[n], two[n]) for n in two)
    assert "sft: goes on from step 2" in said


@pytest.mark.parametrize(("epochs", "best", "steps"), [(5.0, 7, 9), (0.5, 1, 1)])
def test_looks_at_adalora_count_once_its_budget_has_its_last_value(
    epochs: float,
    best: int,
    steps: int,
    tiny_folder: Path,
    demonstrations: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The loss is made to rise with every look. Of 10 steps the last 3 keep the budget; of one step
    none does, and its look is of the cut role.
    """
    seen: list[Document] = []
    taken: list[float] = []
    kinds = mean_loss

    def rising(backbone: Backbone, role: str, documents: list[Document]) -> float:
        seen[:] = documents
        taken.append(kinds(backbone, role, documents))
        return taken[-1] + 10.0 * len(taken)

    monkeypatch.setattr("prefloop.training.held_out.mean_loss", rising)
    adapter = {"method": "adalora", "r": 4, "dropout": 0.0}
    found = sft(
        tmp_path,
        tiny_folder,
        demonstrations,
        adapter=adapter,
        epochs=epochs,
        eval_every=1,
        patience=2,
    )
    assert (found.metrics["best_step"], found.metrics["steps"]) == (best, steps)
    assert found.metrics["held_out_loss"] == taken[best - 1] + 10.0 * best and list(
        events(found)
    ) == [*range(1, steps + 1)]
    values = [
        t
        for n, t in load_file(found.path / "adapter_model.safetensors").items()
        if n.endswith("lora_E")
    ]
    assert sum(int(t.count_nonzero()) for t in values) <= 4 * len(values)
    config = BackboneConfig(
        model="tiny",
        precision="fp32",
        compute="fp32",
        attention="sdpa",
        max_length=256,
        adapter=AdapterConfig(method="adalora", r=4, alpha=4),
    )
    backbone = Backbone.load(config, tiny_folder, torch.device("cpu"))
    backbone.add_role("again", found.path)
    assert kinds(backbone, "again", seen) == pytest.approx(taken[best - 1], abs=1e-5)


WITH_STATE = ("adalora", "lora-fa", "delta-lora", "lora-drop", "prefix", "full")
"""Methods that keep more than LoRA's two matrices for a step to go on from, and the odd ones
out.
"""


@pytest.mark.parametrize("method", [name for name in CARDS if name != "mole"])
def test_the_best_weights_of_every_method_are_kept_whole_and_survive_a_kill(
    method: str,
    tiny_folder: Path,
    demonstrations: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Three steps, of which the last is made to look worst: the artifact is the role after the
    second, and reloads to its loss.
    """
    settings: dict[str, Any] = {
        "adapter": {"method": method, "r": 4, "dropout": 0.0},
        "epochs": 1.5,
        "eval_every": 1,
        "patience": 1,
        "learning_rate": 1e-3,
    }
    seen: list[Document] = []
    kinds = mean_loss

    def worse_at_the_end(backbone: Backbone, role: str, documents: list[Document]) -> float:
        seen[:] = documents
        taken.append(kinds(backbone, role, documents))
        return taken[-1] + (100.0 if len(taken) == 3 else -float(len(taken)))

    taken: list[float] = []
    monkeypatch.setattr("prefloop.training.held_out.mean_loss", worse_at_the_end)
    whole = sft(tmp_path / "whole", tiny_folder, demonstrations, **settings)
    assert whole.metrics["best_step"] == 2 and whole.metrics["steps"] == 3
    config = BackboneConfig(
        model="tiny",
        precision="fp32",
        compute="fp32",
        attention="sdpa",
        max_length=256,
        adapter=AdapterConfig(method=method, r=4, alpha=4),
    )
    backbone = Backbone.load(config, tiny_folder, torch.device("cpu"))
    backbone.add_role("again", whole.path)
    assert kinds(backbone, "again", seen) == pytest.approx(taken[1], abs=1e-5)
    assert taken[1] != pytest.approx(taken[2], abs=1e-7)  # the last weights are others

    if method not in WITH_STATE:
        return
    taken.clear()
    with monkeypatch.context() as patch:
        look = HeldOut.stepped

        def dies(self: HeldOut, step: int, last: bool) -> None:
            if step == 3:
                raise KeyboardInterrupt
            look(self, step, last)

        patch.setattr(HeldOut, "stepped", dies)
        with pytest.raises(KeyboardInterrupt):
            sft(tmp_path / "cut", tiny_folder, demonstrations, **settings)
    again = sft(tmp_path / "cut", tiny_folder, demonstrations, **settings)
    assert again.status == "resumed" and len(taken) == 3
    assert {k: again.metrics[k] for k in ("best_step", "steps")} == {"best_step": 2, "steps": 3}
    one, two = (load_file(a.path / "adapter_model.safetensors") for a in (whole, again))
    assert one.keys() == two.keys() and all(torch.equal(one[n], two[n]) for n in two)
    assert events(again)[3] == pytest.approx(
        events(whole)[3], abs=1e-6
    )  # it went on in the same weights too
