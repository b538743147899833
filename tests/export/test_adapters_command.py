"""``prefloop adapters``, the table in the documentation, and the cards and exports of every
method.
"""

from __future__ import annotations

import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from made_run import make_run
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from prefloop.artifacts.adapter_config import described_shape
from prefloop.cli import _main, guarded
from prefloop.commands.adapters import WIDTH, markdown
from prefloop.config import AdapterConfig
from prefloop.config.adapters import CARDS
from prefloop.data.packing import Document, pack
from prefloop.errors import ConfigError
from prefloop.export.adapter import export
from prefloop.export.card_base import Base
from prefloop.export.loading import loading
from prefloop.models.forward import hidden_N_H, response_logps_R
from prefloop.runs.open import open_policies

ROOT = Path(__file__).parents[2]
IDS = list(range(9, 40))


def test_every_method_is_listed_with_its_options_within_80_columns(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert guarded(_main, ["adapters"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert [line.split()[0] for line in lines[1:] if line[:1].strip() and "vLLM:" not in line][
        : len(CARDS)
    ] == list(CARDS)
    assert any(
        re.fullmatch(r"hra +nf4 bf16 fp32 +merged +yes +2405\.17484", line) for line in lines
    )
    assert "  options: ratio: 16.0" in lines and "  options: tokens: 20, hidden: 0" in lines


def test_the_documentation_holds_the_table_that_the_command_prints(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert guarded(_main, ["adapters", "--markdown"]) == 0
    printed = capsys.readouterr().out.strip()
    assert printed == markdown() and len(printed.splitlines()) == len(CARDS) + 2
    page = (ROOT / "docs" / "adapters.md").read_text(encoding="utf-8")
    assert page.partition("<!-- adapters -->\n")[2].partition("\n<!-- /adapters -->")[0] == printed


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> list[str]:
    run = make_run(tmp_path_factory.mktemp("experts"), "lora", tiny_folder, slots=("sft", "dpo"))
    return [str((run / "artifacts" / slot).resolve()) for slot in ("sft", "dpo")]


@pytest.mark.parametrize("method", CARDS)
def test_the_card_of_an_export_says_what_loads_it_and_that_computes_the_same(
    tmp_path: Path, tiny_folders: Callable[[str], Path], experts: list[str], method: str
) -> None:
    card, tiny_folder = (
        CARDS[method],
        tiny_folders("llama-biased" if method == "bitfit" else "llama"),
    )
    options: dict[str, Any] = {"experts": experts} if method == "mole" else {}
    adapter = AdapterConfig(method=method, r=4, alpha=8, options=options)
    run = make_run(tmp_path, "run", tiny_folder, slots=("sft",), adapter=adapter)
    folder = export(f"{run}:sft", tmp_path / "out")
    for expert in options.get("experts", ()):  # an exported adapter looks for them beside itself
        shutil.copytree(expert, folder.parent / Path(expert).name)
    told = ModelCard.load(folder / "README.md")
    assert (
        told.data.library_name == ("prefloop" if card.ours else "peft") and method in told.data.tags
    )
    assert ("lora" in told.data.tags) == (card.handover == "adapter")
    assert (
        f"| adapter | {'LoRA' if method == 'lora' else ''}" in told.content
        and str(tmp_path) not in told.content
    )
    assert ("--max-lora-rank 8" in told.content) == (card.handover == "adapter")
    assert ("runs adapters of method" in told.content) == (card.handover == "merged")
    assert ("does not run adapters" in told.content) == (card.handover == "none")

    code = re.findall(r"```python\n(.*?)```", told.content, re.DOTALL)[0].replace(
        "FOLDER", str(folder)
    )
    assert ("PeftModel" in code) != card.ours
    names: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT does not know the field that names some methods
        exec(code.replace('"BASE"', f'"{tiny_folder}"'), names)
    assert (
        names["answer"].shape[0] == 1
        and names["answer"].shape[1] > names["asked"]["input_ids"].shape[1]
    )
    with torch.no_grad():
        logits_T_V = (
            names["model"](input_ids=torch.tensor([IDS])).logits[0, -len(IDS) :].log_softmax(-1)
        )
    theirs_R = logits_T_V[10:-1].gather(-1, torch.tensor(IDS[11:])[:, None])[:, 0]
    opened = open_policies([f"{run}:sft"])
    document = pack([Document(IDS[:11], [IDS[11:]], [0])])
    backbone = opened.runtime.backbone
    with backbone.role(next(iter(opened.roles.values()))):
        ours_R = response_logps_R(backbone, hidden_N_H(backbone, document), document)
    assert_close(theirs_R, ours_R, atol=1e-3, rtol=1e-3)


def test_the_card_of_biases_that_plain_weights_have_no_place_for_promises_no_merging(
    tmp_path: Path, tiny_folder: Path
) -> None:
    run = make_run(
        tmp_path, "run", tiny_folder, slots=("sft",), adapter=AdapterConfig(method="bitfit")
    )
    told = ModelCard.load(export(f"{run}:sft", tmp_path / "out") / "README.md").content
    assert (
        "vLLM does not run adapters of method bitfit, and these cannot become plain weights" in told
    )
    assert "--merge" not in told


@pytest.mark.parametrize("method", [card.name for card in CARDS.values() if not card.merges])
def test_merging_what_does_not_merge_is_refused_with_the_names_of_what_does(
    tmp_path: Path, tiny_folder: Path, experts: list[str], method: str
) -> None:
    options: dict[str, Any] = {"experts": experts} if method == "mole" else {}
    adapter = AdapterConfig(method=method, r=4, alpha=8, options=options)
    run = make_run(tmp_path, "run", tiny_folder, slots=("sft",), adapter=adapter)
    with pytest.raises(
        ConfigError,
        match=f"is an adapter of method {method}, which no plain weights.* merges is lora, ",
    ):
        export(f"{run}:sft", tmp_path / "out", merge=True)
    assert not (tmp_path / "out").exists()


def test_the_rank_that_vllm_is_told_is_that_of_the_files() -> None:
    backbone = {"precision": "bf16", "compute": "torch.bfloat16", "chat_template": "model"}

    def told(method: str, rank: int) -> str:
        return loading("sft", Base("org/base"), CARDS[method], {"r": rank}, backbone, merged=False)

    assert "--max-lora-rank 64 " in told(
        "pissa", 2 * 20
    )  # 2 x 20 in the file, the next that vLLM takes
    assert "--max-lora-rank 512 " in told("lora", 400)
    assert "enable-lora" not in told("lora", 600) and "ranks up to 512, this is 600" in told(
        "lora", 600
    )
    assert "export --merge" not in told("prefix", 0)


def test_a_card_of_merged_adapters_claims_no_measurement_and_no_export() -> None:
    backbone = {"precision": "nf4", "compute": "torch.bfloat16", "chat_template": "model"}
    trained, merged = (
        loading(
            kind,
            Base("org/base", False, wheel="w"),
            CARDS["lora"],
            {"r": 8},
            backbone,
            merged=False,
        )
        for kind in ("sft", "merge")
    )
    for claim in (
        "was trained and measured",
        "`prefloop export --merge`",
        "An export with `--merge`",
        "of this card",
    ):
        assert claim in trained and claim not in merged
    assert "the model that its parts were trained on" in merged


@pytest.mark.parametrize("method", ["dora", "ia3", "delta-lora", "full"])
def test_merged_weights_of_other_methods_are_a_model_that_transformers_loads(
    tmp_path: Path, tiny_folder: Path, method: str
) -> None:
    adapter = AdapterConfig(method=method, r=4, alpha=8)
    run = make_run(tmp_path, "run", tiny_folder, slots=("sft",), adapter=adapter)
    folder = export(f"{run}:sft", tmp_path / "whole", merge=True)
    told = ModelCard.load(folder / "README.md")
    assert told.data.library_name == "transformers" and method not in told.data.tags
    assert "with an adapter merged in" in told.content and f"| adapter | {method}" in told.content
    opened = open_policies([f"{run}:sft"])
    ids = torch.tensor([IDS])
    with torch.no_grad(), opened.runtime.backbone.role(next(iter(opened.roles.values()))):
        ours = opened.runtime.backbone.causal_lm(ids).logits
    with torch.no_grad():
        found = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")(ids).logits
    assert_close(found, ours, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(("precision", "peft"), [("nf4", False), ("fp32", True)])
def test_the_card_of_hra_names_peft_where_it_can_run_it(
    tmp_path: Path, tiny_folder: Path, precision: str, peft: bool
) -> None:
    run = make_run(
        tmp_path,
        "run",
        tiny_folder,
        slots=("sft",),
        adapter={"method": "hra", "r": 4},
        precision=precision,
    )
    told = ModelCard.load(export(f"{run}:sft", tmp_path / "out") / "README.md").content
    first = told[told.index("```python") :]
    assert first[: first.index("```", 9)].count("PeftModel") == 2 * peft
    assert (
        "PEFT runs `hra` on weights that are not quantized alone. With prefloop:" in told
    ) != peft


@pytest.mark.parametrize("method", ["prefix", "oft", "bottleneck"])
def test_a_reward_model_of_another_method_has_a_card_that_says_so(
    tmp_path: Path, tiny_folder: Path, method: str
) -> None:
    run = make_run(
        tmp_path,
        "run",
        tiny_folder,
        slots=("reward",),
        adapter=AdapterConfig(method=method, r=4, alpha=8),
    )
    told = ModelCard.load(export(f"{run}:reward", tmp_path / "out") / "README.md").content
    assert (
        f"A reward model that scores responses: an adapter of method {method} (" in told
        and "and a head" in told
    )
    assert ("PEFT does not load the adapter either" in told) == CARDS[method].ours


def test_pefts_own_folders_of_virtual_tokens_are_known_by_method_and_number() -> None:
    for described, method in (
        ({"peft_type": "PROMPT_TUNING"}, "prompt"),
        ({"peft_type": "P_TUNING"}, "p-tuning"),
        ({"peft_type": "PREFIX_TUNING", "prefix_projection": True}, "prefix"),
        ({"peft_type": "PREFIX_TUNING", "prefix_projection": False}, "p-tuning-v2"),
    ):
        assert described_shape(described | {"num_virtual_tokens": 7}) == {
            "method": method,
            "options": {"tokens": 7},
        }
