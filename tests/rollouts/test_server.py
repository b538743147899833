"""Rollouts from a real vLLM server: the trainer's policy after every hand-over, and errors that say
what is wrong.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from ports import deaf_port, free_port
from sampled import prompts_ids
from test_engine import assert_logps_are_the_trainers
from tiny import add_random_role, load, tiny_model

from prefloop.config import GenerationConfig
from prefloop.errors import EngineError
from prefloop.rollouts.engine import divisor
from prefloop.rollouts.start import start

pytestmark = pytest.mark.slow
SETTINGS = {"temperature": 0.7, "max_new_tokens": 24, "max_num_seqs": 8}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("server") / "model", "llama-wide")


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    port = free_port()
    settings = {
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    }
    command = [
        sys.executable,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        str(folder),
        "--served-model-name",
        "tiny",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--dtype",
        "float32",
        "--max-model-len",
        "256",
        "--max-num-seqs",
        "8",
        "--gpu-memory-utilization",
        "0.1",
        "--enforce-eager",
        "--enable-lora",
        "--max-lora-rank",
        "8",
        "--logprobs-mode",
        "processed_logprobs",
        "--generation-config",
        "vllm",
    ]
    process = subprocess.Popen(
        command,
        env=os.environ | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line)
        if "Application startup complete" in line:
            break
    else:
        pytest.fail("the server did not start:\n" + "".join(lines[-30:]))
    drain = threading.Thread(
        target=process.stdout.read, daemon=True
    )  # a full pipe would stop the server
    drain.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(300)


def test_a_server_samples_from_each_version_of_the_policy(
    url: str, folder: Path, tmp_path: Path
) -> None:
    backbone = load(folder, "llama-wide")
    add_random_role(backbone, "policy")
    engine = start(
        "server",
        backbone,
        GenerationConfig(server=url, server_adapters=tmp_path / "adapters", **SETTINGS),
    )
    engine.load_policy("policy")
    counted: list[int] = []
    first = engine.generate(prompts_ids(backbone), n=3, seed=1, advance=counted.append)
    assert [r.prompt for r in first] == [0] * 3 + [1] * 3 + [2] * 3 and sum(counted) == 9
    assert len({tuple(r.token_ids) for r in first}) == 9
    assert_logps_are_the_trainers(backbone, first, 0.7)
    assert engine.generate(prompts_ids(backbone), n=3, seed=1) == first
    greedy = engine.generate(prompts_ids(backbone), n=1, seed=1, temperature=0.0)
    assert greedy == engine.generate(prompts_ids(backbone), n=1, seed=2, temperature=0.0)
    assert_logps_are_the_trainers(backbone, greedy, divisor(0.0))
    with torch.no_grad():
        for parameter in backbone.parameters("policy"):
            parameter.mul_(1.3)
    engine.load_policy("policy")
    second = engine.generate(prompts_ids(backbone), n=3, seed=1)
    assert [r.token_ids for r in second] != [r.token_ids for r in first]
    assert_logps_are_the_trainers(backbone, second, 0.7)
    engine.load_policy(None)
    assert [r.token_ids for r in engine.generate(prompts_ids(backbone), n=3, seed=1)] != [
        r.token_ids for r in second
    ]
    engine.close()
    assert not list((tmp_path / "adapters").glob("*/*")), "adapters of old versions stay behind"


def test_a_server_that_cannot_serve_the_run_is_refused(
    url: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefloop.base.endpoint._wait", lambda seconds, stop: None)
    backbone = load(folder, "llama-wide", max_length=512)
    with pytest.raises(EngineError, match=r"--max-model-len 256, backbone\.max_length is 512"):
        start("server", backbone, GenerationConfig(server=url, **SETTINGS))
    wide = load(folder, "llama-wide", r=16)
    add_random_role(wide, "policy")
    engine = start("server", wide, GenerationConfig(server=url, **SETTINGS))
    with pytest.raises(EngineError, match=r"HTTP [45]\d\d.*rank"):
        engine.load_policy("policy")
    engine.close()


def test_a_missing_address_or_server_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefloop.base.endpoint._wait", lambda seconds, stop: None)
    backbone = load(folder, "llama-wide")
    with pytest.raises(
        EngineError, match=r"needs --generation\.server, such as http://127\.0\.0\.1:8000"
    ):
        start("server", backbone, GenerationConfig())
    with (
        deaf_port() as port,
        pytest.raises(EngineError, match=r"is the server up, and is generation\.server right"),
    ):
        start("server", backbone, GenerationConfig(server=f"http://127.0.0.1:{port}"))
