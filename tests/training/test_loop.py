"""The training loop: a mean over items however they are packed, and resumes that lose nothing."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny import add_random_role, load, random_documents
from torch import Tensor, nn
from torch.testing import assert_close

from prefloop.base.sealed import SEAL, remove
from prefloop.config import OptimConfig
from prefloop.data.packing import Document, Pack, packs
from prefloop.models.backbone import Backbone
from prefloop.models.forward import hidden_N_H, response_logps_R, sum_by_branch_B
from prefloop.training.loop import Loop, NonFiniteLoss

DOCUMENTS = random_documents([(6, [4, 7]), (9, [3]), (5, [8, 2, 6]), (12, [5])])
ITEMS = sum(len(d.keys) for d in DOCUMENTS)


def loop_of(
    backbone: Backbone, folder: Path, total_steps: int = 6, **optim: float | int | str
) -> Loop:
    settings = {"learning_rate": 1e-2, "warmup_steps": 2, "max_grad_norm": 1e6, **optim}
    named = {f"policy/{i}": p for i, p in enumerate(backbone.parameters("policy"))}
    return Loop(named, OptimConfig(**settings), total_steps, folder)


def loss_of(backbone: Backbone) -> Callable[[Pack], Tensor]:
    """Sum over responses of the negative log-prob, each weighted by its key so that mixing them up
    would show.
    """

    def loss(pack: Pack) -> Tensor:
        logps = sum_by_branch_B(response_logps_R(backbone, hidden_N_H(backbone, pack), pack), pack)
        return -(logps * torch.tensor([1.0 + k for k in pack.keys])).sum()

    return loss


def step(
    loop: Loop, backbone: Backbone, documents: list[Document], budget: int = 64
) -> dict[str, float]:
    with backbone.role("policy", train=True):
        return loop.update(
            packs(documents, budget), loss_of(backbone), sum(len(d.keys) for d in documents)
        )


def test_the_step_is_the_mean_over_items_whatever_the_packing(
    tiny_folder: Path, tmp_path: Path
) -> None:
    found = []
    for budget in (32, 64, 512):
        backbone = load(tiny_folder)
        add_random_role(backbone, "policy")
        loop = loop_of(backbone, tmp_path)
        report = step(loop, backbone, DOCUMENTS, budget)
        found.append(
            [
                torch.tensor([report["loss"], report["grad_norm"]]),
                *(p.grad for p in loop.parameters.values()),
            ]
        )
    assert len(packs(DOCUMENTS, 32)) > len(packs(DOCUMENTS, 64)) > len(packs(DOCUMENTS, 512)) == 1
    for others in found[1:]:
        for a, b in zip(others, found[0], strict=True):
            assert_close(a, b, atol=1e-4, rtol=1e-5)


def test_the_reported_loss_and_norm_are_those_of_the_mean(tmp_path: Path) -> None:
    weight = nn.Parameter(torch.tensor([1.0, 2.0]))
    loop = Loop({"w": weight}, OptimConfig(max_grad_norm=0.5), 4, tmp_path)
    pack_of = packs(random_documents([(2, [1]), (2, [1])]), 3)
    report = loop.update(pack_of, lambda pack: (weight * torch.tensor([3.0, 4.0])).sum(), items=2)
    assert report["loss"] == pytest.approx(11.0)
    assert report["grad_norm"] == pytest.approx(5.0)
    assert weight.grad is not None
    assert float(weight.grad.norm()) == pytest.approx(0.5, rel=1e-3)
    loop = Loop({"w": weight}, OptimConfig(max_grad_norm=0), 4, tmp_path / "unclipped")
    loop.update(pack_of, lambda pack: (weight * torch.tensor([3.0, 4.0])).sum(), items=2)
    assert float(weight.grad.norm()) == pytest.approx(5.0)


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["linear", "constant"])
@pytest.mark.parametrize("warmup", [0, 2, 4])
def test_continuing_from_a_checkpoint_ends_in_the_same_weights(
    schedule: str, warmup: int, tiny_folder: Path, tmp_path: Path
) -> None:
    """With adapter dropout, so that torch's random state has to come back as well."""

    def train(
        folder: Path, start: int, stop: int, seed: int, save: bool = False
    ) -> tuple[Loop, list[dict[str, float]]]:
        backbone = load(tiny_folder, dropout=0.2)
        add_random_role(backbone, "policy", seed)
        loop = loop_of(backbone, folder, schedule=schedule, warmup_steps=warmup, weight_decay=0.1)
        torch.manual_seed(7)
        if start:
            restored = loop.restore()
            assert restored is not None
            assert restored[0] == {"position": [3, "x"]}
            assert torch.equal(restored[1]["old/logps"], torch.arange(4.0))
        assert loop.step == start
        reports = []
        for i in range(start, stop):
            reports.append(step(loop, backbone, [DOCUMENTS[i % 4], DOCUMENTS[(i + 1) % 4]]))
        if save:
            loop.save({"position": [3, "x"]}, {"old/logps": torch.arange(4.0)})
        return loop, reports

    whole, reports = train(tmp_path / "whole", 0, 6, seed=1)
    _, first = train(tmp_path / "cut", 0, 3, seed=1, save=True)
    torch.rand(100)
    resumed, second = train(tmp_path / "cut", 3, 6, seed=99)
    assert [*first, *second] == reports
    for name, parameter in whole.parameters.items():
        assert torch.equal(resumed.parameters[name], parameter)
    assert len({tuple(r.values()) for r in reports}) == 6


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"schedule": "linear", "warmup_steps": 0}, [1, 0.75, 0.5, 0.25]),
        ({"schedule": "linear", "warmup_steps": 1}, [0.5, 1, 2 / 3, 1 / 3]),
        ({"schedule": "constant", "warmup_steps": 3}, [0.25, 0.5, 0.75, 1]),
    ],
)
def test_warm_up_and_schedule(settings: dict, expected: list[float], tmp_path: Path) -> None:
    weight, head = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    loop = Loop(
        {"adapter/w": weight, "head/w": head},
        OptimConfig(learning_rate=0.1, **settings),
        4,
        tmp_path,
        {"head/": 0.3},
    )
    rates = []
    for _ in range(4):
        rates.append([group["lr"] for group in loop.optimizer.param_groups])
        loop.update(packs(DOCUMENTS[:1], 64), lambda pack: (weight + head).sum(), items=1)
    assert rates == [[pytest.approx(0.1 * f), pytest.approx(0.3 * f)] for f in expected]


def test_the_two_newest_checkpoints_are_kept_and_a_torn_one_is_ignored(tmp_path: Path) -> None:
    weight = nn.Parameter(torch.ones(1))
    loop = Loop({"w": weight}, OptimConfig(), 4, tmp_path / "checkpoints")
    assert loop.restore() is None
    for _ in range(3):
        loop.update(packs(DOCUMENTS[:1], 64), lambda pack: weight.sum(), items=1)
        loop.save({})
    assert sorted(p.name for p in loop.folder.iterdir()) == ["step-000002", "step-000003"]
    torn = loop.folder / ".partial"
    torn.mkdir()
    (torn / "state.safetensors").write_bytes(b"half")
    again = Loop({"w": nn.Parameter(torch.zeros(1))}, OptimConfig(), 4, loop.folder)
    assert again.restore() == ({}, {})
    assert again.step == 3
    assert torch.equal(again.parameters["w"], weight)
    again.save({})
    assert sorted(p.name for p in loop.folder.iterdir()) == ["step-000002", "step-000003"]


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut to nothing": lambda folder: (folder / "state.safetensors").write_bytes(b""),
    "cut in half": lambda folder: (folder / "state.safetensors").write_bytes(
        (folder / "state.safetensors").read_bytes()[:100]
    ),
    "a bit of a parameter": lambda folder: flip(folder / "state.safetensors"),
    "a bit of its words": lambda folder: flip(folder / SEAL, 30),
    "no seal": lambda folder: (folder / SEAL).unlink(),
    "an empty seal": lambda folder: (folder / SEAL).write_bytes(b""),
    "not JSON": lambda folder: (folder / SEAL).write_bytes(b"\xff{"),
    "a list": lambda folder: (folder / SEAL).write_text("[]"),
    "no folder": lambda folder: (remove(folder), folder.write_text("a file")),
    "a link": lambda folder: link_away(folder / "state.safetensors"),
    "what it needs": lambda folder: flip(folder.parent / "best" / "3.safetensors"),
    "what it needs, gone": lambda folder: (folder.parent / "best" / "3.safetensors").unlink(),
}


def link_away(path: Path) -> None:
    path.symlink_to(path.rename(path.parent.parent / "moved"))


def flip(path: Path, place: int = -3) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before_and_then_for_the_start(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weight = nn.Parameter(torch.ones(1))
    loop = Loop({"w": weight}, OptimConfig(), 4, tmp_path)
    kept: dict[int, Tensor] = {}
    for step in (1, 2, 3):
        loop.update(packs(DOCUMENTS[:1], 64), lambda pack: weight.sum(), items=1)
        best = tmp_path / "best" / f"{step}.safetensors"
        loop.keep(best)
        loop.save({"at": step}, needed=[best])
        kept[step] = weight.detach().clone()
    assert loop.needed() == {tmp_path / "best" / f"{step}.safetensors" for step in (2, 3)}
    DAMAGES[damage](tmp_path / "step-000003")
    again = Loop({"w": nn.Parameter(torch.zeros(1))}, OptimConfig(), 4, tmp_path)
    assert again.restore() == ({"at": 2}, {})
    assert again.step == 2 and torch.equal(again.parameters["w"], kept[2])
    said = " ".join(capsys.readouterr().out.split())
    assert "checkpoint step-000003 is damaged" in said and "going on from step-000002" in said
    assert [p.name for p in again.checkpoints()] == ["step-000002"]
    flip(tmp_path / "step-000002" / "state.safetensors")
    afresh = Loop({"w": nn.Parameter(torch.zeros(1))}, OptimConfig(), 4, tmp_path)
    assert afresh.restore() is None and afresh.step == 0 and not afresh.checkpoints()
    assert "going on from the start of the stage" in " ".join(capsys.readouterr().out.split())


BAD: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "nan": (lambda w: w.sum() * float("nan"), r"step 2: loss is nan on responses \[0, 1\]"),
    "infinite": (lambda w: w.sum() * float("inf"), r"step 2: loss is inf on responses \[0, 1\]"),
    "nan gradient": (lambda w: (w.sum() * 0).sqrt(), r"step 2: gradient norm is nan"),
}


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", BAD)
def test_a_non_finite_step_is_refused_and_leaves_everything_as_it_was(
    name: str, fused: bool, tmp_path: Path
) -> None:
    """``fused``: as on a GPU, where the optimizer itself leaves the weights alone and the host
    looks afterwards.
    """
    bad, message = BAD[name]
    weight = nn.Parameter(torch.tensor([1.0, 2.0]))
    loop = Loop({"w": weight}, OptimConfig(warmup_steps=0), 4, tmp_path)
    loop.fused = loop.optimizer.param_groups[0]["fused"] = fused
    made = packs(DOCUMENTS[:1], 64)
    loop.update(made, lambda pack: weight.sum(), items=1)
    before = weight.detach().clone(), loop.step, [g["lr"] for g in loop.optimizer.param_groups]
    with pytest.raises(NonFiniteLoss, match=message):
        loop.update(made, lambda pack: bad(weight), items=1)
    assert torch.equal(weight, before[0])
    assert (loop.step, [g["lr"] for g in loop.optimizer.param_groups]) == before[1:]
    report = loop.update(made, lambda pack: weight.sum(), items=1)
    assert report["grad_norm"] == pytest.approx(2**0.5)
    assert not torch.equal(weight, before[0])


def test_a_non_finite_loss_names_the_rows(tmp_path: Path) -> None:
    weight = nn.Parameter(torch.ones(1))
    loop = Loop(
        {"w": weight},
        OptimConfig(),
        4,
        tmp_path,
        ids_of=lambda keys: [f"row-{key}" for key in keys],
    )
    with pytest.raises(NonFiniteLoss, match="loss is nan on rows row-0, row-1;"):
        loop.update(packs(DOCUMENTS[:1], 64), lambda pack: weight.sum() * float("nan"), items=1)
