"""Load finished policies onto their common backbone.

An adapter that prefloop did not make states less about its backbone. The missing settings come from
the other policies in the same call.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from prefloop.artifacts.adapter_config import matching
from prefloop.artifacts.references import Origin, Policy, policy_of
from prefloop.base.console import say
from prefloop.base.json_object import problems
from prefloop.config import BackboneConfig, GenerationConfig
from prefloop.errors import ConfigError, ModelError
from prefloop.models.folder import described, text_part
from prefloop.models.rope import context
from prefloop.runs.runtime import Runtime


def require_one_backbone(
    policies: Sequence[Policy], model: str | None = None, adapters: bool = True
) -> None:
    """Raise ``ModelError``, with both names and the differences, if two policies cannot share a
    backbone.

    Args:
        policies: the policies.
        model: the base model to use for all of them, whatever their files name.
        adapters: whether they must also fit into memory together. Without it, method and rank may
            differ.
    """
    for i, one in enumerate(policies):
        for other in policies[i + 1 :]:
            a, b = (
                dataclasses.replace(p.origin, model=model or p.origin.model) for p in (one, other)
            )
            if a.differs(b, adapters=False):
                raise ModelError(
                    f"'{one.name}' and '{other.name}' belong to different backbones:"
                    f" {'; '.join(a.differs(b, adapters))}. Only adapters of one model, precision"
                    " and chat template can be used together"
                )
            if adapters and (differences := a.differs(b)):
                raise ModelError(
                    f"'{one.name}' and '{other.name}' are adapters of different kinds:"
                    f" {'; '.join(differences)}. Only adapters of one method and shape can be"
                    " loaded together (`prefloop judge` takes others too; `prefloop adapters merge`"
                    " keeps a source's rank with --how svd or --rank)"
                )


def of_one_kind(policies: Sequence[Policy]) -> list[list[Policy]]:
    """Group policies of one backbone by adapter method and shape.

    Policies of one group fit into memory together. Groups follow the order of their first members.
    """
    kinds: list[list[Policy]] = []
    shapes = {p.name: Origin("", shape=p.origin.shape) for p in policies}
    for policy in policies:
        for kind in kinds:
            if not any(shapes[policy.name].differs(shapes[other.name]) for other in kind):
                kind.append(policy)
                break
        else:
            kinds.append([policy])
    return kinds


def runtimes_of(
    policies: Sequence[Policy],
    model: str | None = None,
    generation: Mapping[str, Any] | None = None,
    rollout: str | None = None,
    **options: Any,
) -> Generator[tuple[list[Policy], Runtime], None, None]:
    """Yield one runtime per group of ``of_one_kind``; each is released before the next is made.

    Model, sampling and store are the same for all, as in ``runtime_of``. vLLM starts only once per
    process, since the remains of its memory pool break a second engine. Later groups are sampled
    with transformers, and a message says so.
    """
    require_one_backbone(policies, model, adapters=False)
    whole = runtime_of(policies, model, generation, rollout, adapters=False, **options)
    started = False
    for kind in of_one_kind(policies):
        engine = rollout or next((p.engine for p in kind if p.engine), "transformers")
        if engine == "vllm" and started:
            engine = "transformers"
            say(
                f"  {', '.join(p.name for p in kind)}: sampled with transformers, because vLLM"
                " starts only once per process",
                "yellow",
            )
        started = started or engine == "vllm"
        adapter = _backbone_config(
            kind, whole.backbone_config.model, whole.backbone_config.pack_tokens
        ).adapter
        config = dataclasses.replace(whole.backbone_config, adapter=adapter)
        runtime = Runtime(config, whole.generation, engine, whole.seed, whole.output)
        try:
            yield kind, runtime
        finally:
            runtime.release()


def runtime_of(
    policies: Sequence[Policy],
    model: str | None = None,
    generation: Mapping[str, Any] | None = None,
    rollout: str | None = None,
    seed: int = 0,
    output: Path | None = None,
    pack_tokens: int = 4096,
    adapters: bool = True,
) -> Runtime:
    """The runtime for the common backbone of ``policies``; nothing is loaded yet.

    Args:
        policies: the policies.
        model: path or name of the base model, if it has moved since training.
        generation: sampling settings that replace those of the first policy that has any.
        rollout: the engine; by default the first policy's.
        seed: the runtime's seed.
        output: the folder for runs and store; by default the first policy's.
        pack_tokens: token budget of one forward pass.
        adapters: whether all adapters must fit into memory together.

    Raises ``ModelError`` for policies of different backbones, and if ``model`` is another model.
    """
    require_one_backbone(policies, model, adapters)
    sampler = next((p for p in policies if p.generation), None)
    sampling = sampler.generation if sampler and sampler.generation else GenerationConfig()
    runtime = Runtime(
        _backbone_config(policies, model, pack_tokens),
        dataclasses.replace(sampling, **(generation or {})),
        rollout or (sampler.engine if sampler and sampler.engine else "transformers"),
        seed,
        output or next((p.output for p in policies if p.output), Path("runs")),
    )
    require_model(runtime, {p.name: p.origin for p in policies})
    if not any("max_length" in p.origin.settings for p in policies):
        config = runtime.backbone_config
        runtime.backbone_config = dataclasses.replace(
            config, max_length=min(config.max_length, context_of(runtime))
        )
    return runtime


def context_of(runtime: Runtime) -> int:
    """The model's context in tokens; ``backbone.max_length`` if its configuration states none."""
    return context(text_part(described(runtime.model_folder))) or runtime.backbone_config.max_length


def require_model(runtime: Runtime, origins: Mapping[str, Origin]) -> None:
    """Raise ``ModelError`` if the runtime's model is not the one that an adapter was trained on."""
    if any(origin.fingerprint for origin in origins.values()):
        require_fingerprint(runtime.model_fingerprint, runtime.backbone_config.model, origins)


def require_fingerprint(fingerprint: str, model: str, origins: Mapping[str, Origin]) -> None:
    """Raise ``ModelError`` if ``model``, with this fingerprint, is not an adapter's base model."""
    for name, origin in origins.items():
        if origin.fingerprint and fingerprint != origin.fingerprint:
            raise ModelError(
                f"'{model}' is not the model that '{name}' was trained on (its files differ from"
                f" those of {origin.model}): give that model with --model"
            )


def config_of(
    origin: Origin, name: str, model: str | None = None, **changes: Any
) -> BackboneConfig:
    """The backbone settings of a result.

    Args:
        origin: the result's backbone as its files describe it.
        name: the result's name for error messages.
        model: path or name of the base model, if it has moved since training.
        changes: fields to replace.

    Raises ``ModelError`` if the model is unknown, for settings that this version does not read, and
    for a chat template from a file, which artifacts do not include.
    """
    if origin.settings.get("chat_template", "model") not in ("model", "chatml"):
        raise ModelError(
            f"'{name}' was trained with a chat template from a file, which the artifact does not"
            " hold: train it with 'model' or 'chatml'"
        )
    settings = {"model": model or origin.model, **origin.settings}
    if not settings["model"]:
        raise ModelError(
            f"'{name}' does not state the model it was trained on (base_model_name_or_path in its"
            " adapter_config.json is null or empty): give the model with --model"
        )
    if not origin.settings and origin.shape:  # a folder that PEFT wrote
        shape = origin.shape.copy()
        if isinstance(modules := shape.get("target_modules"), list):
            shape["target_modules"] = matching(modules)
        settings |= {"precision": "bf16", "adapter": shape}
    if origin.experts:
        adapter = settings.get("adapter", {})
        options = {**adapter.get("options", {}), "experts": origin.experts}
        settings["adapter"] = {**adapter, "options": options}
    try:
        return BackboneConfig(**{**settings, **changes})
    except (ValidationError, ConfigError) as error:
        reason = problems(error) if isinstance(error, ValidationError) else str(error)
        raise ModelError(
            f"'{name}' was made by a version of prefloop whose settings this one does not read"
            f" ({reason}): run its command again"
        ) from None


@dataclasses.dataclass
class Opened:
    """Policies on one backbone; more can join.

    ``roles`` maps each policy's name to its role on the backbone (``None``: the bare model).
    """

    runtime: Runtime
    policies: dict[str, Policy]
    roles: dict[str, str | None]

    def add(self, policy: Policy) -> str | None:
        """Add a policy as a frozen role, and return the role.

        Raises ``ModelError`` for a policy of another backbone.
        """
        if policy.name not in self.roles:
            if self.policies:
                require_one_backbone(
                    [next(iter(self.policies.values())), policy], self.runtime.backbone_config.model
                )
            require_model(self.runtime, {policy.name: policy.origin})
            role = f"result-{len(self.roles)}" if policy.folder else None
            if policy.folder and role:
                self.runtime.backbone.add_role(role, start=policy.folder, frozen=True)
            self.roles[policy.name] = role
            self.policies[policy.name] = policy
        return self.roles[policy.name]


def open_policies(references: Sequence[str | Path | Policy], **settings: Any) -> Opened:
    """Load the backbone once, with every policy on it as a frozen role.

    ``settings`` are those of ``runtime_of``.
    """
    policies = [r if isinstance(r, Policy) else policy_of(r) for r in references]
    opened = Opened(runtime_of(policies, **settings), {}, {})
    for policy in policies:
        opened.add(policy)
    return opened


def _backbone_config(
    policies: Sequence[Policy], model: str | None, pack_tokens: int
) -> BackboneConfig:
    """The backbone settings from the policy that states the most of them.

    A run's policy comes before a PEFT folder that names its model, an adapter before a bare model.
    """
    first = max(
        policies,
        key=lambda p: (bool(p.origin.settings), bool(p.origin.model), bool(p.origin.shape)),
    )
    longest = [
        p.origin.settings["max_length"] for p in policies if "max_length" in p.origin.settings
    ]
    changes: dict[str, Any] = {"pack_tokens": pack_tokens}
    if longest:
        changes["max_length"] = max(longest)
    return config_of(first.origin, first.name, model, **changes)
