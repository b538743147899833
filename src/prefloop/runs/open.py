"""Policies on the backbone that they were made on, loaded once for all of them.

An adapter that prefloop did not make says less about its backbone: what it leaves open is taken
from the others beside it.
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
    """Raise ``ModelError`` with both names and what differs, when two cannot share a backbone;
    ``model`` names the one to take for all.

    Without ``adapters`` method and rank may differ: they share no memory then, but the same model
    answers.
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
                    " and chat template can be put beside each other"
                )
            if adapters and (found := a.differs(b)):
                raise ModelError(
                    f"'{one.name}' and '{other.name}' are adapters of different kinds:"
                    f" {'; '.join(found)}. Only those of one method and shape can be in memory"
                    " together (`prefloop judge` takes others too; of merged ones --how svd or"
                    " --rank keeps a source's rank)"
                )


def of_one_kind(policies: Sequence[Policy]) -> list[list[Policy]]:
    """Policies of one backbone that can be in memory together, in the order in which the first of
    each kind stands.
    """
    kinds: list[list[Policy]] = []
    alike = {
        p.name: dataclasses.replace(p.origin, model="", fingerprint="", settings={})
        for p in policies
    }
    for policy in policies:
        beside = next(
            (k for k in kinds if not any(alike[policy.name].differs(alike[p.name]) for p in k)),
            None,
        )
        if beside is None:
            kinds.append([policy])
        else:
            beside.append(policy)
    return kinds


def runtimes_of(
    policies: Sequence[Policy],
    model: str | None = None,
    generation: Mapping[str, Any] | None = None,
    rollout: str | None = None,
    **options: Any,
) -> Generator[tuple[list[Policy], Runtime], None, None]:
    """For each kind of adapters a runtime, released when the next is asked for: one model, sampling
    and store for all, as ``runtime_of`` says.

    A process starts vLLM once (what an engine leaves of its memory pool breaks a second one), so
    kinds after the one that had it are sampled by transformers, which is said.
    """
    require_one_backbone(policies, model, adapters=False)
    whole = runtime_of(policies, model, generation, rollout, adapters=False, **options)
    started = False
    for kind in of_one_kind(policies):
        engine = rollout or next((p.engine for p in kind if p.engine), "transformers")
        if engine == "vllm" and started:
            engine = "transformers"
            say(
                f"  {', '.join(p.name for p in kind)}: sampled by transformers, as vLLM starts once"
                " in a process",
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
    """The runtime with the backbone that all of ``policies`` belong to; nothing is loaded yet.

    Sampling is that of the first policy which says how, but for the fields in ``generation``;
    ``model`` names the backbone where its name of then no longer leads to it. Without ``adapters``
    it is that of their model alone. Raises ``ModelError`` when they need different ones or what is
    found is another model.
    """
    require_one_backbone(policies, model, adapters)
    said = next((p for p in policies if p.generation), None)
    sampling = dataclasses.replace(
        said.generation if said and said.generation else GenerationConfig(), **(generation or {})
    )
    runtime = Runtime(
        _backbone_config(policies, model, pack_tokens),
        sampling,
        rollout or (said.engine if said and said.engine else "transformers"),
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
    """Tokens that the model was made for; ``backbone.max_length`` where it does not say."""
    return context(text_part(described(runtime.model_folder))) or runtime.backbone_config.max_length


def require_model(runtime: Runtime, origins: Mapping[str, Origin]) -> None:
    """Raise ``ModelError`` when the model that was found is not the one that an adapter was made
    on.
    """
    if any(origin.fingerprint for origin in origins.values()):
        require_fingerprint(runtime.model_fingerprint, runtime.backbone_config.model, origins)


def require_fingerprint(found: str, model: str, origins: Mapping[str, Origin]) -> None:
    """Raise ``ModelError`` when ``model``, the fingerprint of which is ``found``, is not the one
    that an adapter was made on.
    """
    for name, origin in origins.items():
        if origin.fingerprint and found != origin.fingerprint:
            raise ModelError(
                f"'{model}' is not the model that '{name}' was trained on (its files differ from"
                f" those of {origin.model}): name that one with --model"
            )


def config_of(
    origin: Origin, name: str, model: str | None = None, **changes: Any
) -> BackboneConfig:
    """The settings of a result's backbone; ``model`` names it where its name of then does not lead
    to it any more.

    Raises ``ModelError`` where nothing names it, and for a chat template from a file, which no
    artifact holds.
    """
    if origin.settings.get("chat_template", "model") not in ("model", "chatml"):
        raise ModelError(
            f"'{name}' was trained with a chat template from a file, which the artifact does not"
            " hold: train it with 'model' or 'chatml'"
        )
    settings = {"model": model or origin.model, **origin.settings}
    if not settings["model"]:
        raise ModelError(
            f"'{name}' does not say which model it was trained on (base_model_name_or_path in its"
            " adapter_config.json is null or empty): name that one with --model"
        )
    if not origin.settings and origin.shape:  # PEFT's own folder
        shape = dict(origin.shape)
        if isinstance(modules := shape.get("target_modules"), list):
            shape["target_modules"] = matching(modules)
        settings |= {"precision": "bf16", "adapter": shape}
    if origin.experts:
        adapter = dict(settings.get("adapter", {}))
        settings["adapter"] = adapter | {
            "options": adapter.get("options", {}) | {"experts": origin.experts}
        }
    try:
        return BackboneConfig(**{**settings, **changes})
    except (ValidationError, ConfigError) as error:
        found = problems(error) if isinstance(error, ValidationError) else str(error)
        raise ModelError(
            f"'{name}' was made by a version of prefloop whose settings this one does not read"
            f" ({found}): run its command again"
        ) from None


@dataclasses.dataclass
class Opened:
    """Policies on one backbone; more can join. ``roles`` says under which role each one is
    (``None``: the bare model).
    """

    runtime: Runtime
    policies: dict[str, Policy]
    roles: dict[str, str | None]

    def add(self, policy: Policy) -> str | None:
        """Put one more on the backbone, frozen, and return its role. Raises ``ModelError`` when it
        belongs to another.
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
    """Load the backbone once and put every policy on it as a frozen role; ``settings`` are those of
    ``runtime_of``.
    """
    policies = [r if isinstance(r, Policy) else policy_of(r) for r in references]
    opened = Opened(runtime_of(policies, **settings), {}, {})
    for policy in policies:
        opened.add(policy)
    return opened


def _backbone_config(
    policies: Sequence[Policy], model: str | None, pack_tokens: int
) -> BackboneConfig:
    """Of the policy that says most: one of a run before a folder of PEFT's own that names its
    model, an adapter before the bare model.
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
