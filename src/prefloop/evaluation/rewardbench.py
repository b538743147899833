"""RewardBench's sections (Lambert et al. 2024, arXiv 2403.13787): which subsets make them up, and
how they are averaged.
"""

from __future__ import annotations

from collections.abc import Mapping

SECTIONS: dict[str, tuple[str, ...]] = {
    "Chat": (
        "alpacaeval-easy",
        "alpacaeval-length",
        "alpacaeval-hard",
        "mt-bench-easy",
        "mt-bench-med",
    ),
    "Chat Hard": (
        "mt-bench-hard",
        "llmbar-natural",
        "llmbar-adver-neighbor",
        "llmbar-adver-GPTInst",
        "llmbar-adver-GPTOut",
        "llmbar-adver-manual",
    ),
    "Safety": (
        "refusals-dangerous",
        "refusals-offensive",
        "xstest-should-refuse",
        "xstest-should-respond",
        "donotanswer",
    ),
    "Reasoning": ("math-prm", "hep-cpp", "hep-go", "hep-java", "hep-js", "hep-python", "hep-rust"),
}
_MATHS = "math-prm"


def sections(subsets: Mapping[str, tuple[float | None, int]]) -> dict[str, float]:
    """Section → accuracy from subset → (accuracy, pairs), and ``average`` over the sections; empty
    when any subset is not RewardBench's.

    Other collections share a few of its names, and their pairs are not those of the benchmark.
    Within a section pairs weigh alike; in Reasoning maths weighs as much as all code together. A
    section lacks the subsets that the file lacks.
    """
    out: dict[str, float] = {}
    if not set(subsets) <= {name for names in SECTIONS.values() for name in names}:
        return out
    for section, names in SECTIONS.items():
        parts = {
            name: part for name in names if (part := subsets.get(name)) and part[0] is not None
        }
        code = {name: part for name, part in parts.items() if name != _MATHS}
        means = (
            [_pooled(part) for part in ({_MATHS: parts[_MATHS]}, code) if part]
            if _MATHS in parts
            else [_pooled(parts)]
        )
        if parts:
            out[section] = sum(means) / len(means)
    return out | {"average": sum(out.values()) / len(out)} if out else {}


def _pooled(parts: Mapping[str, tuple[float | None, int]]) -> float:
    total = sum(pairs for _, pairs in parts.values())
    return (
        sum((accuracy or 0.0) * pairs for accuracy, pairs in parts.values()) / total
        if total
        else 0.0
    )
