"""One PPO step on a 4-bit backbone with vLLM beside it: seconds, tokens a second and memory of each
phase, and the arithmetic limit.

    # 7B shape, 256 prompts x 256 new tokens
    python benchmarks/ppo_step.py
    # the same with only 24 GiB of the card free
    python benchmarks/ppo_step.py --budget 24
    python benchmarks/ppo_step.py --handover adapter --no-sleep
    # scoring and training with four separate bfloat16 models
    python benchmarks/ppo_step.py --side four
    # one H200
    python benchmarks/ppo_step.py --shape 70b --quantized --weights nf4 --prompts 64 --new-tokens \
        128

Random weights in NF4, LoRA r = 16 on every linear layer; prompts shaped like hh-rlhf. The limit
takes generation at the rate that vLLM reaches on its own with the same prompts, and the arithmetic
of scoring and training (without recomputation) at the rate that a large bfloat16 matrix product
reaches on this card. Memory is the whole device's, in use by anything, sampled every 5 ms.
"""

from __future__ import annotations

import argparse
import atexit
import math
import random
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import four_models
from shapes import SHAPES, make_model, make_quantized, rows

GIB = 2**30


class Memory:
    """The device's memory in use, at most, since the last ``take``."""

    def __init__(self, ballast: int) -> None:
        import torch

        self.torch, self.ballast, self.highest, self.stop = torch, ballast, 0, False
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        atexit.register(self.close)  # CUDA must not be asked while it shuts down

    def _watch(self) -> None:
        while not self.stop:
            free, total = self.torch.cuda.mem_get_info()
            self.highest = max(self.highest, total - free - self.ballast)
            time.sleep(0.005)

    def close(self) -> None:
        self.stop = True
        self.thread.join()

    def take(self) -> float:
        free, total = self.torch.cuda.mem_get_info()
        found, self.highest = max(self.highest, total - free - self.ballast), 0
        return found / GIB


def matrix_rate() -> float:
    """FLOP/s of a bfloat16 product of 8192 x 8192 matrices."""
    import torch

    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(5):
        a @ b
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(20):
        a @ b
    torch.cuda.synchronize()
    return 20 * 2 * 8192**3 / (time.perf_counter() - started)


def arithmetic(
    shape: dict[str, Any], scored: Any, members: int, own_critic: bool
) -> dict[str, float]:
    """FLOP of scoring and training a rollout: shared prompts once, no recomputation, no gradients
    of frozen weights.
    """
    h, m, layers = shape["hidden_size"], shape["intermediate_size"], shape["num_hidden_layers"]
    kv = h * shape["num_key_value_heads"] // shape["num_attention_heads"]
    body = layers * (2 * h * h + 2 * h * kv + 3 * h * m)
    tokens = context = responses = 0
    for d in scored.documents:
        p = len(d.prompt_ids)
        tokens, context = tokens + p, context + p * p / 2
        for ids in d.responses_ids:
            r = len(ids)
            tokens, responses, context = tokens + r, responses + r, context + r * p + r * r / 2
    inner = 2 * body * tokens + 4 * h * layers * context
    head = 2 * h * shape["vocab_size"] * responses
    critic = 1 if own_critic else 0
    return {
        "score": (2 + members + critic) * inner + 2 * head,
        "optimise": (2 + 2 * critic) * inner + 2 * head,
    }


class Synthetic:
    """Random tokens in no time, to measure scoring and training alone."""

    def __init__(self, vocabulary: int, new_tokens: int) -> None:
        self.vocabulary, self.new_tokens = vocabulary, new_tokens

    def load_policy(self, role: str | None) -> None: ...

    def pause(self) -> None: ...

    def close(self) -> None: ...

    def generate(self, prompts_ids: list[list[int]], n: int, seed: int) -> list[Any]:
        """Responses of full length with equal log-probs."""
        from prefloop.rollouts.engine import Rollout

        draw, logp = random.Random(seed), -math.log(self.vocabulary)
        return [
            Rollout(
                i,
                [draw.randrange(10, self.vocabulary) for _ in range(self.new_tokens)],
                [logp] * self.new_tokens,
                False,
            )
            for i in range(len(prompts_ids))
        ]


def main() -> None:
    """Build, run some steps, print each and the last one's table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", default="7b", choices=list(SHAPES))
    parser.add_argument(
        "--model", type=Path, help="folder of the random model; made when it is not there"
    )
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--new-tokens", type=int, default=256)
    parser.add_argument("--steps", type=int, default=2, help="the last one is the table's")
    parser.add_argument("--members", type=int, default=1)
    parser.add_argument("--critic", default="shared", choices=["shared", "adapter"])
    parser.add_argument("--handover", default="auto", choices=["auto", "merged", "adapter"])
    parser.add_argument("--weights", default="full", choices=["full", "nf4"])
    parser.add_argument("--rollout", default="vllm", choices=["vllm", "transformers", "synthetic"])
    parser.add_argument("--pack-tokens", type=int, default=4096)
    parser.add_argument("--max-num-seqs", type=int, default=256)
    parser.add_argument("--kv-cache-gb", type=float)
    parser.add_argument(
        "--budget", type=float, help="GiB of the card to leave free for all of this"
    )
    parser.add_argument("--checkpointing", default="block", choices=["none", "block"])
    parser.add_argument("--no-sleep", action="store_true")
    parser.add_argument(
        "--side",
        default="ours",
        choices=["ours", "four"],
        help="four: separate bfloat16 models, no vLLM",
    )
    parser.add_argument(
        "--quantized", action="store_true", help="make the model in 4 bits, a layer at a time"
    )
    options = parser.parse_args()

    import torch

    from prefloop.config import (
        AdapterConfig,
        BackboneConfig,
        GenerationConfig,
        OptimConfig,
        PPOConfig,
    )
    from prefloop.models.backbone import Backbone
    from prefloop.models.heads import ScalarHead
    from prefloop.models.reward_model import Reward, role_of
    from prefloop.records import Message, Prompt
    from prefloop.rollouts.start import start
    from prefloop.runs.runtime import environment
    from prefloop.training.audit import Audit
    from prefloop.training.loop import Loop
    from prefloop.training.policy import POLICY, REFERENCE, policy_parameters
    from prefloop.training.ppo import PPOTrainer, kl_penalty
    from prefloop.training.rewards import Rewards
    from prefloop.training.scoring import Critic, Scorer

    versions = environment()["versions"]
    gpu = torch.cuda.is_available()
    print(torch.cuda.get_device_name() if gpu else "cpu", versions, flush=True)
    folder = options.model or Path(tempfile.gettempdir()) / f"prefloop-{options.shape}"
    if not (folder / "config.json").is_file():
        (make_quantized if options.quantized else make_model)(folder, options.shape)
    data = rows(options.prompts, SHAPES[options.shape]["vocab_size"])
    prompts_ids = {str(i): p for i, (p, _, _) in enumerate(data)}
    rate = matrix_rate() if gpu else 2.5e11
    ballast = None
    if gpu and options.budget:
        torch.cuda.empty_cache()
        total = torch.cuda.mem_get_info()[
            1
        ]  # what this process holds already, its CUDA context, is part of the budget
        ballast = torch.empty(int(total - options.budget * GIB), dtype=torch.uint8, device="cuda")
    memory = (
        Memory(ballast.numel() if ballast is not None else 0)
        if gpu
        else SimpleNamespace(take=lambda: float("nan"))
    )

    if options.side == "four":
        synthetic = Synthetic(SHAPES[options.shape]["vocab_size"], options.new_tokens)
        responses = [r.token_ids for r in synthetic.generate(list(prompts_ids.values()), 1, seed=0)]
        real = sum(map(len, prompts_ids.values())) + sum(map(len, responses))
        for step, phases in enumerate(
            four_models.run(
                folder, list(prompts_ids.values()), responses, options.steps, memory.take
            ),
            1,
        ):
            for name, (took, peak) in phases.items():
                print(
                    f"four models, step {step}: {name:10} {took:8.2f} s {real / took:9.0f} tok/s"
                    f" {peak:7.2f} GiB",
                    flush=True,
                )
        return
    clock = time.perf_counter()
    config = BackboneConfig(
        model=str(folder),
        gradient_checkpointing=options.checkpointing,
        pack_tokens=options.pack_tokens,
        max_length=1024,
        chat_template="chatml",
        adapter=AdapterConfig(r=16, alpha=32),
    )
    backbone = Backbone.load(config, folder)
    print(
        f"backbone {time.perf_counter() - clock:.1f} s, {memory.take():.2f} GiB at most", flush=True
    )
    generation = GenerationConfig(
        temperature=1.0,
        max_new_tokens=options.new_tokens,
        max_num_seqs=options.max_num_seqs,
        kv_cache_gb=options.kv_cache_gb,
        handover=options.handover,
        weights=options.weights,
        sleep=not options.no_sleep,
    )
    backbone.add_role(POLICY)
    backbone.add_role(REFERENCE, frozen=True)
    heads = [
        ScalarHead(backbone.hidden_size, "normal", seed=k).to(backbone.device)
        for k in range(options.members)
    ]
    for k in range(options.members):
        backbone.add_role(role_of(k), frozen=True)
    reward = Reward(backbone, heads)
    critic = Critic(backbone, options.critic)
    clock = time.perf_counter()
    engine: Any
    if options.rollout == "synthetic":
        engine = Synthetic(SHAPES[options.shape]["vocab_size"], options.new_tokens)
    else:
        engine = start(options.rollout, backbone, generation)
    print(
        f"engine {time.perf_counter() - clock:.1f} s, {memory.take():.2f} GiB at most", flush=True
    )

    batch = [Prompt(id=i, prompt=[Message("user", "w9")]) for i in prompts_ids]
    seconds = lambda: getattr(getattr(engine, "engine", engine), "seconds", {})  # noqa: E731
    engine.load_policy(None)
    engine.generate(list(prompts_ids.values()), 1, seed=0)
    clock = time.perf_counter()
    alone = sum(len(r.token_ids) for r in engine.generate(list(prompts_ids.values()), 1, seed=1))
    alone_rate = alone / (time.perf_counter() - clock)
    engine.pause()
    print(
        f"vLLM on its own: {alone_rate:.0f} tok/s; {memory.take():.2f} GiB at most; {seconds()}",
        flush=True,
    )

    settings = PPOConfig(
        prompts_per_step=options.prompts,
        samples_per_prompt=1,
        critic=options.critic,
        missing_eos_penalty=0.0,
    )
    loop = Loop(
        policy_parameters(backbone) | critic.parameters,
        OptimConfig(learning_rate=1e-5),
        100,
        Path(tempfile.mkdtemp()),
    )
    scorer = Scorer(backbone, settings, generation.temperature, reward, critic, Rewards({}))
    trainer = PPOTrainer(scorer, "gae", loop, Audit("ppo"), seed=0)
    kl = kl_penalty(settings.kl, "gae")
    for step in range(1, options.steps + 1):
        phases: dict[str, tuple[float, float, int]] = {}
        clock = time.perf_counter()

        def lap(name: str, tokens: int = 0) -> None:
            nonlocal clock
            if gpu:
                torch.cuda.synchronize()
            phases[name] = (time.perf_counter() - clock, memory.take(), tokens)  # noqa: B023
            clock = time.perf_counter()

        engine.load_policy(POLICY)
        lap("wake, hand over")
        rollouts = engine.generate(list(prompts_ids.values()), 1, seed=step + 1)
        new = sum(len(r.token_ids) for r in rollouts)
        lap("generate", new)
        engine.pause()
        lap("sleep")
        scored = scorer.score(batch, list(prompts_ids.values()), rollouts)
        whole = sum(len(d.prompt_ids) + sum(map(len, d.responses_ids)) for d in scored.documents)
        lap("score", whole)
        advantages = trainer.estimate(scored, kl)
        lap("estimate")
        update = trainer.update(scored, advantages, kl, step)
        lap("optimise", whole)
        gap = float((scored.old_logp_R - scored.sampler_logp_R).abs().mean())
        limits = {"generate": new / alone_rate}
        limits |= {
            n: f / rate
            for n, f in arithmetic(
                SHAPES[options.shape], scored, options.members, critic.own
            ).items()
        }
        print(
            f"\nstep {step}: log-prob gap {gap:.5f}, ratio {update.ratio:.4f}, kernel"
            f" {backbone.kernel}, {seconds()}"
        )
        print(f"{'phase':16} {'s':>8} {'limit s':>8} {'tok/s':>9} {'GiB':>7}")
        for name, (took, peak, tokens) in phases.items():
            limit = f"{limits[name]:8.2f}" if name in limits else " " * 8
            print(f"{name:16} {took:8.2f} {limit} {tokens / took:9.0f} {peak:7.2f}")
        total = sum(took for took, _, _ in phases.values())
        print(
            f"{'step':16} {total:8.2f} {sum(limits.values()):8.2f} {'':9}"
            f" {max(p for _, p, _ in phases.values()):7.2f}   {sum(limits.values()) / total:.0%} of"
            f" the limit; matrix rate {rate / 1e12:.0f} TFLOP/s",
            flush=True,
        )
    engine.close()


if __name__ == "__main__":
    main()
