"""One frozen backbone, named roles as adapters on it.

``policy``, ``reference`` and ``reward/0`` are adapters on one set of (4-bit) weights. The reference
is the *frozen SFT adapter* when the policy started from one; adapters-off is the reference only for
a policy that started from the bare base.
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
from prefloop.models.load import compute_dtype, load
from prefloop.models.merge import plain_weights, require_mergeable


class Backbone:
    """Weights loaded once per process; roles come and go as adapters."""

    def __init__(
        self, model: Any, method: Method, chat: ChatFormat, config: BackboneConfig, folder: Path
    ) -> None:
        self.model = model
        self.method = method
        self.chat = chat
        self.config = config
        self.folder = folder
        self.compute_dtype = compute_dtype(config, next(model.parameters()).device)
        self.roles: set[str] = set()
        self.kernel: str | None = None
        """How packs are attended to; found at the first packed forward
        (``models.forward.choose``).
        """
        self._named_cache: dict[str, dict[str, nn.Parameter]] = {}
        self.active = Active()
        self.fused = fuse(model, self.active, config.gradient_checkpointing == "block")
        """The layers that run the active role in their own precision; empty where PEFT's own
        forward (and autocast) is in charge.
        """
        self.layers = (
            fuse_layers(model, self.active, config.gradient_checkpointing == "block")
            if self.fused
            else []
        )
        """Decoder layers that run as one step; empty where the model's are built in another way."""
        self.decoder.register_forward_pre_hook(self._before_pass)
        self._blocks = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
        self._learning: str | None = None

    @classmethod
    def load(
        cls, config: BackboneConfig, folder: Path, device: torch.device | None = None
    ) -> Backbone:
        """Load the model in ``folder`` in the configured precision onto ``device`` (default: GPU if
        there is one).
        """
        device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return cls(*load(config, folder, device), config, folder)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def decoder(self) -> nn.Module:
        """The transformer without its language-model head: token ids → hidden states."""
        return self.causal_lm.get_decoder()

    @property
    def causal_lm(self) -> Any:
        return self.method.base()

    @property
    def hidden_size(self) -> int:
        return self.causal_lm.config.get_text_config().hidden_size

    @property
    def scoring_tokens(self) -> int:
        """Pack budget of passes without gradient: twice ``pack_tokens``, since they keep nothing,
        unless attention grows with the square.
        """
        return self.config.pack_tokens * (2 if self.kernel in ("varlen", "flex") else 1)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """bfloat16 autocast (adapters stay float32), or nothing when the layers see to their
        precision or it is float32.
        """
        if self.compute_dtype == torch.float32 or self.fused:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def add_role(
        self, role: str, start: Path | None = None, seed: int = 0, frozen: bool = False
    ) -> None:
        """Create an adapter called ``role``, a copy of the one saved in ``start`` or freshly
        initialised (B = 0) from ``seed``.

        A ``frozen`` one, which never learns, is kept in the precision that it computes in.
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
                    f"'{start.name}' holds no adapter ({error}): give a folder written by save_role"
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
        """Forget an adapter and free its memory."""
        if role in self.roles:
            self.activate(None)
            self.method.drop(role)
            self._forget(role)
            self._named_cache.pop(role, None)
            self.roles.discard(role)

    @contextlib.contextmanager
    def role(self, role: str | None, train: bool = False, dropout: bool = False) -> Iterator[None]:
        """Run with one adapter active (``None``: the bare base); with ``train`` its parameters get
        gradients.

        With ``dropout`` too the adapter's dropout is on: never in passes whose log-probs are
        compared with others.

        The role and its mode stay until the next ``role()``, so a backward pass that recomputes
        activations does so under the role that made them: call ``backward`` before switching. A
        frozen role's parameters are not to be written through ``.data``, which nothing notices.
        """
        if self.fused:
            self.active.role, self.active.dropout = role, dropout
        else:
            self.activate(role, dropout)
        # The frozen base is always in eval mode: its own dropout is nobody's wish here. Blocks
        # recompute where gradients flow.
        for block in self._blocks:
            block.training = train
        self._learn(role if train else self._learning)
        with contextlib.nullcontext() if train else torch.no_grad(), self.autocast():
            yield

    def activate(self, role: str | None, dropout: bool = False) -> None:
        """Make ``role`` the adapter of every forward pass until the next ``role()``, for libraries
        that run the model themselves.

        PEFT's ``disable_adapter()`` works within it; its ``set_adapter`` alone does not reach fused
        layers: use this.
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
                "an adapter was merged into this backbone: prefloop keeps them apart, call"
                " unmerge_adapter()"
            )
        role = self.active.role
        if self.layers and role is not None:
            copies = self.layers[0].copies
            if role not in copies:
                copies[role] = RoleCopies(
                    [group for layer in self.layers for group in layer.groups], role
                )
            copies[role].refresh()

    def _forget(self, role: str | None) -> None:
        if self.layers and role:
            self.layers[0].copies.pop(role, None)
        for layer in self.fused if role else ():
            layer.forget(str(role))

    def made_anew(self, role: str) -> None:
        """Forget what is known of a role whose method has changed what it consists of."""
        self._named_cache.pop(role, None)
        self._forget(role)

    def _learn(self, role: str | None) -> None:
        if role == self._learning:
            return
        for known, wanted in ((self._learning, False), (role, True)):
            for parameter in self.parameters(known) if known in self.roles else ():
                parameter.requires_grad_(wanted)
        self._forget(role)  # what learns from now on is copied anew in every pass
        self._learning = role

    def parameters(self, role: str) -> list[nn.Parameter]:
        """The adapter's parameters, in a fixed order."""
        return list(self.named_parameters(role).values())

    def named_parameters(self, role: str) -> dict[str, nn.Parameter]:
        """What learns of the adapter by the names that its file gives it, sorted."""
        if role not in self._named_cache:
            self._named_cache[role] = self.method.parameters(role)
        return self._named_cache[role]

    def below_head(self, role: str) -> dict[str, nn.Parameter]:
        """``named_parameters`` without those of the output head: what learns where hidden states
        alone are read, as in a reward model.
        """
        head = self.causal_lm.get_output_embeddings()
        place = next(name for name, module in self.causal_lm.named_modules() if module is head)
        return {n: p for n, p in self.named_parameters(role).items() if f".{place}." not in f".{n}"}

    def save_role(self, role: str, folder: Path) -> None:
        """Write ``adapter_model.safetensors`` and ``adapter_config.json``: files that PEFT and vLLM
        load, where the method is one of theirs.
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
        """A digest of every weight that no adapter owns; must not change while a stage trains."""
        digest = hashlib.sha256()
        adapters = {*self.roles, BLANK}
        for name, parameter in self.model.named_parameters():
            if not self.method.owns(name, adapters):
                content = parameter.detach().contiguous().view(-1).view(torch.uint8)
                digest.update(checksum(content) if content.is_cuda else content.numpy())
        return digest.hexdigest()

    def merged_weights(self, role: str | None) -> Iterator[tuple[str, Tensor]]:
        """Yield every weight of the plain model, in the compute precision, with the adapter merged
        in (``PlainWeight.write``), where it can be (``require_mergeable``).
        """
        if role is not None:
            require_mergeable(self.causal_lm)
        for weight in plain_weights(self.causal_lm):
            merged = torch.empty(weight.shape, dtype=self.compute_dtype, device=self.device)
            weight.write(role, merged)
            yield weight.name, merged


def checksum(content: Tensor) -> bytes:
    """Eight bytes that any one changed byte of ``content`` (uint8, flat) changes, computed where it
    lies: a GPU would take seconds to give up its weights.

    The sum of its 32-bit words, each times an odd number of its place, modulo 2^64.
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
        place = torch.arange(start, start + len(words), device=words.device) * -7046029254386353131
        total += (words * (place | 1)).sum()
        start += len(words)
    return int(total).to_bytes(8, "little", signed=True)
