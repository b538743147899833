"""What a PPO step costs with four separate bfloat16 models, as OpenRLHF and verl load them: for
``ppo_step.py --side four``.

Policy and critic learn through LoRA (r = 16, gradient checkpointing), reference and reward model
are frozen copies; rows padded to the longest of a micro-batch of 8; torch's SDPA; log-probs from
whole logits of the responses. Generation is left to vLLM and is the same for both sides.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

MICRO = 8


def run(
    folder: Path,
    prompts: list[list[int]],
    responses: list[list[int]],
    steps: int,
    peak: Callable[[], float],
) -> Iterator[dict[str, tuple[float, float]]]:
    """Load the four and yield, for each step, seconds and GiB of scoring and training."""
    import torch
    from peft import LoraConfig, get_peft_model
    from torch.nn import functional as F
    from transformers import AutoModel, AutoModelForCausalLM

    from prefloop.objectives import ppo as math_

    device = "cuda" if torch.cuda.is_available() else "cpu"
    load: dict[str, Any] = {
        "dtype": torch.bfloat16,
        "device_map": {"": device},
        "attn_implementation": "sdpa",
    }
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear")
    policy: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(folder, **load), lora)
    critic: Any = get_peft_model(AutoModel.from_pretrained(folder, **load), lora)
    reference: Any = AutoModelForCausalLM.from_pretrained(folder, **load).requires_grad_(False)
    reward: Any = AutoModel.from_pretrained(folder, **load).requires_grad_(False)
    heads = [torch.nn.Linear(reward.config.hidden_size, 1, device=device) for _ in range(2)]
    for model in (policy, critic):
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
        model.train()
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    learning = [p for m in (policy, critic, heads[0]) for p in m.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=1e-5, fused=device == "cuda")
    longest = len(responses[0])

    def batches() -> Iterator[tuple[slice, Any, Any, Any]]:
        for start in range(0, len(prompts), MICRO):
            where = slice(start, start + MICRO)
            width = max(len(p) for p in prompts[where]) + longest
            ids = torch.zeros(len(prompts[where]), width, dtype=torch.long)
            mask = torch.zeros_like(ids)
            for row, (p, r) in enumerate(zip(prompts[where], responses[where], strict=True)):
                ids[row, width - len(p) - len(r) :] = torch.tensor(p + r)
                mask[row, width - len(p) - len(r) :] = 1
            yield (
                where,
                ids.to(device),
                mask.to(device),
                (mask.cumsum(1) - 1).clamp(min=0).to(device),
            )

    def logps(model: Any, ids: Any, mask: Any, positions: Any) -> Any:
        out = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            use_cache=False,
            logits_to_keep=longest + 1,
        )
        return (
            out.logits[:, :-1].float().log_softmax(-1).gather(-1, ids[:, -longest:, None])[..., 0]
        )

    def hidden(model: Any, ids: Any, mask: Any, positions: Any) -> Any:
        return model(
            input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False
        ).last_hidden_state

    def lap() -> float:
        nonlocal clock
        if device == "cuda":
            torch.cuda.synchronize()
        took, clock = time.perf_counter() - clock, time.perf_counter()
        return took

    clock = time.perf_counter()
    autocast = torch.autocast(device, torch.bfloat16)
    peak()
    for _ in range(steps):
        lap()
        old, value, score, kl = [], [], [], []
        with torch.no_grad(), autocast:
            for _, *row in batches():
                old.append(logps(policy, *row))
                kl.append(old[-1] - logps(reference, *row))
                value.append(heads[0](hidden(critic, *row)[:, -longest - 1 : -1].float())[..., 0])
                score.append(heads[1](hidden(reward, *row)[:, -1].float())[..., 0])
        rewards = -0.05 * torch.cat(kl)
        rewards[:, -1] += torch.cat(score)
        advantage, returns = math_.gae(rewards, torch.cat(value), 1.0, 0.95)
        advantage = math_.whiten(advantage)
        phases = {"score": (lap(), peak())}
        for half in range(2):
            for number, (where, *row) in enumerate(batches()):
                if number % 2 != half:
                    continue
                with autocast:
                    loss = math_.policy_loss_R(
                        logps(policy, *row), torch.cat(old)[where], advantage[where], 0.2
                    ).sum()
                    (loss / advantage.numel() * 2).backward()
                    found = heads[0](hidden(critic, *row)[:, -longest - 1 : -1].float())[..., 0]
                    (
                        F.mse_loss(found, returns[where], reduction="sum") / advantage.numel()
                    ).backward()
            torch.nn.utils.clip_grad_norm_(learning, 1.0)
            optimizer.step()
            optimizer.zero_grad()
        yield phases | {"optimise": (lap(), peak())}
