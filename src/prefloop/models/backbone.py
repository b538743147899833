"""One frozen backbone with adapters on it, one per role.

``policy``, ``reference`` and ``reward/0`` are adapters on one set of (4-bit) weights. A policy that
started from an SFT adapter has that frozen adapter as its reference. The bare base is the reference
only of a policy that started from the bare base.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from prefloop.artifacts.adapter_config import read_adapter
from prefloop.config import BackboneConfig
from prefloop.data.chat import ChatFormat
from prefloop.errors import ModelError
from prefloop.models.adapters.method import BLANK, Method
from prefloop.models.folder import read_tensors
from prefloop.models.fused.detect import fuse_layers
from prefloop.models.fused.lora import Active, fuse
from prefloop.models.fused.projections import RoleCopies
from prefloop.models.load import LoadedModel, compute_dtype, load
from prefloop.models.merge import plain_weights, require_mergeable


class Backbone:
    """The weights of one process, loaded once. Roles are added and dropped as adapters."""

    def __init__(self, loaded: LoadedModel, config: BackboneConfig, folder: Path) -> None:
        self.model: Any = loaded.model
        self.method: Method = loaded.method
        self.chat: ChatFormat = loaded.chat
        self.config = config
        self.folder = folder
        self.compute_dtype = compute_dtype(config, self.device)
        self.roles: set[str] = set()
        self.kernel: str | None = None
        """The attention kernel for packs, chosen at the first packed forward pass
        (``models.forward.choose``).
        """
        self._named_cache: dict[str, dict[str, nn.Parameter]] = {}
        self.active = Active()
        recomputes = config.gradient_checkpointing == "block"
        self.fused = fuse(self.model, self.active, recomputes)
        """LoRA layers with prefloop's forward, in the weights' precision. Empty where PEFT's
        forward runs, under autocast.
        """
        self.layers = fuse_layers(self.model, self.active, recomputes) if self.fused else []
        """Decoder layers that run as one step; empty for models whose layers are built differently.
        """
        self.decoder.register_forward_pre_hook(self._before_pass)
        self._blocks = [
            m for m in self.model.modules() if isinstance(m, GradientCheckpointingLayer)
        ]
        self._learning: str | None = None

    @classmethod
    def load(
        cls, config: BackboneConfig, folder: Path, device: torch.device | None = None
    ) -> Backbone:
        """Load the model in ``folder`` onto ``device``; by default onto a GPU if there is one.

        Raises ``ModelError`` as ``models.load.load`` does.
        """
        device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return cls(load(config, folder, device), config, folder)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def decoder(self) -> nn.Module:
        """The transformer without its output head: token ids → hidden states."""
        return self.causal_lm.get_decoder()

    @property
    def causal_lm(self) -> Any:
        return self.method.base()

    @property
    def hidden_size(self) -> int:
        return self.causal_lm.config.get_text_config().hidden_size

    @property
    def scoring_tokens(self) -> int:
        """Pack budget in tokens of passes without gradient.

        Such passes keep no activations, so the budget is twice ``pack_tokens``. It stays at
        ``pack_tokens`` for kernels whose memory grows with the square of the pack.
        """
        return self.config.pack_tokens * (2 if self.kernel in ("varlen", "flex") else 1)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """bfloat16 autocast, with float32 adapters. A null context for float32 arithmetic and for
        fused layers, which cast for themselves.
        """
        if self.compute_dtype == torch.float32 or self.fused:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def add_role(
        self, role: str, start: Path | None = None, seed: int = 0, frozen: bool = False
    ) -> None:
        """Create an adapter called ``role``; an existing one of that name is replaced.

        Args:
            role: the adapter's name.
            start: folder of a saved adapter to copy; by default a fresh adapter (LoRA: B = 0).
            seed: seed of a fresh adapter's values.
            frozen: whether the adapter never learns. It is then kept in the compute dtype.

        Raises ``ModelError`` for a folder without an adapter, or with one of another shape.
        """
        if role in self.roles:
            self.drop_role(role)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.method.add(role)
            if start is None:
                self.method.begin(role)
        self.model.eval()
        self.roles.add(role)
        if start is not None:
            try:
                saved, described = read_tensors(start, str(self.device)), read_adapter(start)
            except ModelError as error:
                self.drop_role(role)
                raise ModelError(
                    f"'{start.name}' holds no adapter ({error}): give a folder written by prefloop"
                    " or PEFT"
                ) from error
            try:
                self.method.restore(role, saved, described)
            except ModelError as error:
                self.drop_role(role)
                raise ModelError(
                    f"the adapter in {start.name} does not fit backbone.adapter of this run"
                    f" ({error})"
                ) from error
        for parameter in self.parameters(role) if frozen and self.fused else ():
            parameter.data = parameter.data.to(self.compute_dtype)
        self.activate(None)

    def drop_role(self, role: str) -> None:
        """Remove an adapter and free its memory."""
        if role in self.roles:
            self.activate(None)
            self.method.drop(role)
            self._forget(role)
            self._named_cache.pop(role, None)
            self.roles.discard(role)

    @contextlib.contextmanager
    def role(self, role: str | None, train: bool = False, dropout: bool = False) -> Iterator[None]:
        """Run forward passes with one adapter active (``None``: the bare base).

        Args:
            role: the adapter.
            train: whether its parameters get gradients.
            dropout: whether its dropout is on. Keep it off in passes whose log-probs are compared.

        The role and its mode stay set until the next ``role()``. A backward pass that recomputes
        activations therefore uses the role that made them: call ``backward`` before switching. Do
        not write a frozen role's parameters through ``.data``; fused layers would keep old copies.
        """
        if self.fused:
            self.active.role, self.active.dropout = role, dropout
        else:
            self.activate(role, dropout)
        # The frozen base stays in eval mode, without its own dropout. Only the checkpointed blocks
        # are in training mode where gradients flow, since otherwise they would not recompute.
        for block in self._blocks:
            block.training = train
        self._learn(role if train else self._learning)
        with contextlib.nullcontext() if train else torch.no_grad(), self.autocast():
            yield

    def activate(self, role: str | None, dropout: bool = False) -> None:
        """Make ``role`` the active adapter until the next ``role()``.

        This is for libraries that run the model themselves. PEFT's ``disable_adapter()`` works, but
        PEFT's ``set_adapter`` does not reach fused layers.
        """
        self.active.role, self.active.dropout = role, dropout
        self.method.activate(role)
        if role is not None and not self.fused:
            self.method.set_dropout(role, dropout)
        self.model.requires_grad_(False)
        self._learning = None
        self._forget(role)

    def _before_pass(self, *_: Any) -> None:
        """Bring the copies of the active adapter up to date."""
        if any(layer.layer.merged for layer in self.fused):
            raise RuntimeError(
                "an adapter was merged into this backbone, whose weights must stay frozen: call"
                " unmerge_adapter()"
            )
        role = self.active.role
        if self.layers and role is not None:
            copies = self.layers[0].copies
            if role not in copies:
                groups = [group for layer in self.layers for group in layer.groups]
                copies[role] = RoleCopies(groups, role)
            copies[role].refresh()

    def _forget(self, role: str | None) -> None:
        if self.layers and role:
            self.layers[0].copies.pop(role, None)
        for layer in self.fused if role else ():
            layer.forget(str(role))

    def made_anew(self, role: str) -> None:
        """Drop the caches of a role whose set of parameters has changed."""
        self._named_cache.pop(role, None)
        self._forget(role)

    def _learn(self, role: str | None) -> None:
        if role == self._learning:
            return
        for known, wanted in ((self._learning, False), (role, True)):
            for parameter in self.parameters(known) if known in self.roles else ():
                parameter.requires_grad_(wanted)
        self._forget(role)  # a learning role is copied again in every pass
        self._learning = role

    def parameters(self, role: str) -> list[nn.Parameter]:
        """The adapter's parameters, in a fixed order."""
        return list(self.named_parameters(role).values())

    def named_parameters(self, role: str) -> dict[str, nn.Parameter]:
        """The adapter's learning parameters by their names in its file, sorted."""
        if role not in self._named_cache:
            self._named_cache[role] = self.method.parameters(role)
        return self._named_cache[role]

    def below_head(self, role: str) -> dict[str, nn.Parameter]:
        """``named_parameters`` without those of the output head.

        These learn in stages that read hidden states only, such as reward modeling.
        """
        head = self.causal_lm.get_output_embeddings()
        path = next(name for name, module in self.causal_lm.named_modules() if module is head)
        return {n: p for n, p in self.named_parameters(role).items() if f".{path}." not in f".{n}"}

    def save_role(self, role: str, folder: Path) -> None:
        """Write ``adapter_model.safetensors`` and ``adapter_config.json`` to ``folder``.

        PEFT and vLLM load them, if they know the method.
        """
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {
            name: t.detach().cpu().contiguous() for name, t in self.method.state(role).items()
        }
        save_file(tensors, folder / "adapter_model.safetensors")
        config = self.method.describe(role)
        config.update(base_model_name_or_path=self.config.model, inference_mode=True)
        config = {k: sorted(v) if isinstance(v, set) else v for k, v in config.items()}
        (folder / "adapter_config.json").write_text(
            json.dumps(config, indent=2, sort_keys=True, default=str)
        )

    def frozen_digest(self) -> str:
        """A digest of all weights outside the adapters. Training must not change it."""
        digest = hashlib.sha256()
        adapters = {*self.roles, BLANK}
        for name, parameter in self.model.named_parameters():
            if not self.method.owns(name, adapters):
                content = parameter.detach().contiguous().view(-1).view(torch.uint8)
                digest.update(checksum(content) if content.is_cuda else content.numpy())
        return digest.hexdigest()

    def merged_weights(self, role: str | None) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, weight) of the plain model with the adapter merged in, in the compute dtype.

        Raises ``ModelError`` for an adapter that cannot be merged (``require_mergeable``).
        """
        if role is not None:
            require_mergeable(self.causal_lm)
        for weight in plain_weights(self.causal_lm):
            merged = torch.empty(weight.shape, dtype=self.compute_dtype, device=self.device)
            weight.write(role, merged)
            yield weight.name, merged


def checksum(content: Tensor) -> bytes:
    """An 8-byte checksum of ``content`` (uint8, flat) that any single changed byte changes.

    It is the sum modulo 2^64 of the 32-bit words, each times an odd number that depends on its
    position. It is computed on the tensor's device, since copying the weights from a GPU takes
    seconds.
    """
    if content.storage_offset() % 4:  # words begin at multiples of four bytes
        content = content.clone()
    whole = len(content) // 4 * 4
    total = torch.zeros((), dtype=torch.int64, device=content.device)
    start = 0
    for words in (
        *content[:whole].view(torch.int32).split(1 << 20),
        torch.nn.functional.pad(content[whole:], (0, -len(content) % 4)).view(torch.int32),
    ):
        factor = torch.arange(start, start + len(words), device=words.device) * -7046029254386353131
        total += (words * (factor | 1)).sum()
        start += len(words)
    return int(total).to_bytes(8, "little", signed=True)
