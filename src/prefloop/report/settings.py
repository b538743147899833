"""The settings of a run: its configuration, or the identities of its artifacts where the summary
has none.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefloop.artifacts.manifest import MANIFEST, read_manifest
from prefloop.base.redact import flat_without_secrets
from prefloop.errors import StoreError
from prefloop.report.summary import Summary

_ALWAYS_OWN = ("run", "output", "notes")
"""Settings that differ between any two runs and do not affect results."""
_OF_ALL_STAGES = ("seed", "backbone", "generation")


def read_identities(run_dir: Path, summary: Summary) -> dict[str, Any]:
    """The settings and inputs of every stage, without the hash of its code."""
    keys = {stage.key: stage.name for stage in summary.stages if stage.key}
    found: dict[str, Any] = {}
    for path in sorted((run_dir / "artifacts").glob(f"*/{MANIFEST}")):
        try:
            manifest = read_manifest(path.parent, required=False)
        except StoreError:
            continue
        if name := keys.get(manifest.key):
            found[name] = {
                field: value
                for field, value in manifest.identity.items()
                if field not in ("class", "code", "stage")
            }
    return {name: found[name] for name in keys.values() if name in found}


def differences(runs: Mapping[str, tuple[Path, Summary]]) -> list[tuple[str, list[str]]]:
    """Settings that differ between the runs, with the value in each; an en dash where a run has no
    such setting.
    """
    if all(summary.config for _, summary in runs.values()):
        flat = [flat_without_secrets(summary.config) for _, summary in runs.values()]
    else:
        flat = [
            flat_without_secrets(tree)
            for tree in _shared([read_identities(*run) for run in runs.values()])
        ]
    names = dict.fromkeys(
        name for known in flat for name in known if name.partition("/")[0] not in _ALWAYS_OWN
    )
    rows = [(name.replace("/", "."), [_said(known.get(name)) for known in flat]) for name in names]
    return [(name, values) for name, values in rows if len(set(values)) > 1]


def _shared(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Identities in which settings shared by all stages of a run stand once. A stage that not every
    run has is one line without its settings.
    """
    everywhere = set.intersection(*(set(stages) for stages in runs)) if runs else set()
    found = []
    for stages in runs:
        tree: dict[str, Any] = {
            "stages": {name: "yes" for name in stages if name not in everywhere}
        }
        for name, identity in stages.items():
            tree |= {field: identity[field] for field in _OF_ALL_STAGES if field in identity}
            if name in everywhere:
                tree[name] = {
                    field: value for field, value in identity.items() if field not in _OF_ALL_STAGES
                }
        found.append(tree)
    return found


def _said(value: Any) -> str:
    if value is None:
        return "\N{EN DASH}"
    text = str(value)
    return text if len(text) <= 80 else f"{text[:79]}…"
