"""The pipeline as a user starts it, on a tiny random model and a slice of the demo data."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from forked import Forked

ROOT = Path(__file__).parents[1]
# As many lines as ``Forked`` prints.
START = (
    "import prefloop.base.console as c, runpy, sys; c.PLAIN_EVERY_S = 0; sys.argv[0] ="
    " 'pipelines/rlhf.py'; runpy.run_path(sys.argv[0], run_name='__main__')"
)


def write_config(folder: Path, model: Path, **changes: Any) -> Path:
    """A configuration that runs in seconds, without the bare model's answers; ``changes`` replace
    top-level keys.
    """
    demo = ROOT / "examples" / "demo"
    for name in ("train", "demonstrations", "eval"):
        (folder / f"{name}.jsonl").write_text(
            "".join((demo / f"{name}.jsonl").open(encoding="utf-8").readlines()[:12])
        )
    optim = {"learning_rate": 1e-2, "checkpoint_every": 2, "warmup_steps": 5}
    tree: dict[str, Any] = {
        "run": "t",
        "output": str(folder / "runs"),
        "gold": f"{demo / 'gold.py'}:score",
        "rollout": "transformers",
        # fp32: what "auto" is differs from processor to processor, and with it the last digits.
        "backbone": {
            "model": str(model),
            "precision": "nf4",
            "compute": "fp32",
            "max_length": 256,
            "adapter": {"r": 4, "alpha": 8},
        },
        "generation": {"max_new_tokens": 10},
        "data": {
            "prompts": str(folder / "train.jsonl"),
            "demonstrations": str(folder / "demonstrations.jsonl"),
            "eval_prompts": str(folder / "eval.jsonl"),
        },
        "sft": {"batch_size": 2, "optim": dict(optim)},
        "label": {"annotators": [{"name": "a", "noise": 0.05}, {"name": "b", "noise": 0.3}]},
        "reward": {"batch_pairs": 8, "optim": dict(optim)},
        "preference": {"batch_pairs": 8, "optim": dict(optim)},
        "ppo": {
            "steps": 4,
            "prompts_per_step": 4,
            "samples_per_prompt": 2,
            "optim": {"learning_rate": 1e-2, "checkpoint_every": 1},
        },
        "evaluate": {"samples": 2, "resamples": 200, "base": False},
    }
    tree.update(changes)
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def environment(*folders: str) -> dict[str, str]:
    """Variables of a run: this checkout's prefloop (and other ``folders`` of it), one thread, no
    hub.
    """
    path = os.pathsep.join(str(ROOT / folder) for folder in ("src", *folders))
    return os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def start(
    config: Path, *flags: str, script: str = "pipelines/rlhf.py", killed_at: str = ""
) -> Forked:
    """The pipeline in a process of its own, its output line by line."""
    return Forked(script, ["--config", str(config), *flags], ROOT, environment(), killed_at)


def kill_at_step(config: Path, step: str, *flags: str) -> list[str]:
    """Run until a stage prints a step, such as 'sft 3/', and SIGKILL at that moment, however late
    the output is read: the lines.
    """
    process = start(config, *flags, killed_at=rf"^  {step}")
    seen = list(process.stdout)
    assert process.wait(timeout=120) == -signal.SIGKILL, "".join(seen)
    return seen


def finish(process: Forked) -> tuple[int, str]:
    """Exit code and output."""
    output, _ = process.communicate(timeout=300)
    return process.wait(), output


def run(config: Path, *flags: str) -> str:
    """Run to the end; the output. Fails with it when the run does."""
    code, output = finish(start(config, *flags))
    assert code == 0, output
    return output


def run_afresh(config: Path, *flags: str) -> str:
    """The same from a bare interpreter, as a user's command: it imports everything itself and
    hashes unlike all others.
    """
    command = [sys.executable, "-c", START, "--config", str(config), *flags]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    done = subprocess.run(command, cwd=ROOT, env=environment(), text=True, timeout=300, **pipes)
    assert done.returncode == 0, done.stdout
    return done.stdout


def copy_store(config: Path, elsewhere: Path, without: str) -> None:
    """What a run has built, all but the stage ``without``, for another output folder to go on
    from.
    """
    leave = shutil.ignore_patterns(f"{without}-*")
    shutil.copytree(
        config.parent / "runs" / ".store", elsewhere / ".store", ignore=leave, dirs_exist_ok=True
    )


def stop_after(
    config: Path, lines: int, number: signal.Signals = signal.SIGKILL
) -> tuple[bool, int, str]:
    """Send a signal once the process has printed ``lines`` lines: (was it still running, exit code,
    output).
    """
    process = start(config)
    seen = []
    for line in process.stdout:
        seen.append(line)
        if len(seen) == lines:
            process.send_signal(number)
    return len(seen) >= lines, process.wait(timeout=120), "".join(seen)


def summary(config: Path) -> dict[str, Any]:
    """The run's summary.json."""
    return json.loads((config.parent / "runs" / "t" / "summary.json").read_text())


def statuses(config: Path) -> dict[str, str]:
    """Stage name → ran, resumed or reused."""
    return {s["name"]: s["status"] for s in summary(config)["stages"]}


def adapter_hash(config: Path, slot: str) -> str:
    """SHA-256 of the adapter in a slot of the run."""
    path = config.parent / "runs" / "t" / "artifacts" / slot / "adapter_model.safetensors"
    return hashlib.sha256(path.read_bytes()).hexdigest()
