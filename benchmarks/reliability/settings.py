"""Do odd configurations end in a sentence? Mutated files of the examples go through reading,
composing and all checks before a run.

    python benchmarks/reliability/settings.py --seed 0 --size 1200

Each is accepted, or refused by a ``PrefloopError`` of at most 4 KiB. Prints counts, and each
failure with the file that repeats it.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import os
import random
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "pipelines")]
os.environ["HF_HUB_OFFLINE"] = "1"
EXAMPLES = ("demo", "hh", "hh_ppo", "hh_reward", "adapters")
LONGEST = 4096
VALUES: tuple[Any, ...] = (
    None,
    True,
    "",
    " ",
    "x",
    "no",
    -1,
    0,
    0.5,
    10**30,
    float("nan"),
    float("inf"),
    "1e300",
    [],
    [1],
    {},
    {"a": 1},
    "\0",
    "\x1b[31m",
    "../..",
    "x" * 300,
    "x" * 100_000,
    "é" * 200,
    "hf:",
    "http://u:p@h/x",
    [[[]]],
    {"x": {"y": {}}},
    "0x10",
    "!!int 3",
)


KINDS = [
    "value",
    "near",
    "near",
    "swap",
    "deep",
    "tag",
    "number",
    "alias",
    "section",
    "key",
    "bytes",
    "cut",
    "raw",
]
NUMBERS = (1, 2, 3, 7, 60, 1000, 10**6, 0.001, 0.3, 0.99, 1.0, 1.5, 30.0, 1e6)


def bases(folder: Path, model: Path) -> list[dict[str, Any]]:
    """The examples on a tiny model and small files, so that they are accepted as they stand."""
    from loop_run import write_config

    small = yaml.safe_load(write_config(folder, model).read_text())
    pairs = folder / "pairs.jsonl"
    pairs.write_text(
        '{"prompt": "One?", "chosen": "One.", "rejected": "Two."}\n{"prompt": "Two?", "chosen":'
        ' "2.", "rejected": "1."}\n'
    )
    found = []
    for name in EXAMPLES:
        tree = yaml.safe_load((ROOT / "examples" / f"{name}.yaml").read_text())
        files = {key: str(pairs) for key in ("comparisons", "demonstrations")} | small["data"]
        tree["data"] = {**tree["data"], **{key: files[key] for key in files if key in tree["data"]}}
        if "reward_tests" in tree["data"]:
            tree["data"]["reward_tests"] = [str(pairs)]
        tree |= {"gold": small["gold"], "rollout": "transformers", "output": str(folder / "runs")}
        tree["backbone"] = {**tree.get("backbone", {}), "model": str(model), "max_length": 256}
        tree["backbone"].setdefault("adapter", {})["r"] = 4
        tree["generation"] = {**tree.get("generation", {}), "max_new_tokens": 10}
        found.append(tree)
    return found


def places(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a tree."""
    for key, value in (
        tree.items()
        if isinstance(tree, dict)
        else enumerate(tree)
        if isinstance(tree, list)
        else ()
    ):
        yield (*path, key)
        yield from places(value, (*path, key))


def put(tree: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A tree with another value in one place."""
    tree = node = copy.deepcopy(tree)
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return tree


def get(tree: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def mutated(tree: dict[str, Any], draw: random.Random) -> tuple[str, bytes]:
    """The name of a mutation and the file's bytes."""
    kind = draw.choice(KINDS)
    where = list(places(tree))
    path, other = draw.choice(where), draw.choice(where)
    mark = "MARK0"
    text = yaml.safe_dump(put(tree, path, mark), allow_unicode=True)
    raw: Callable[[str], bytes] = lambda value: text.replace(mark, value).encode("utf-8", "replace")  # noqa: E731
    if kind == "value":
        return kind, yaml.safe_dump(
            put(tree, path, draw.choice(VALUES)), allow_unicode=True
        ).encode("utf-8", "replace")
    if kind == "near":
        old = get(tree, path)
        same = [value for value in (*VALUES, *NUMBERS, not old) if type(value) is type(old)]
        return kind, yaml.safe_dump(
            put(tree, path, draw.choice(same or [old])), allow_unicode=True
        ).encode("utf-8", "replace")
    if kind == "swap":
        value = copy.deepcopy(get(tree, other))
        return kind, yaml.safe_dump(put(tree, path, value)).encode()
    if kind == "deep":
        depth = draw.choice((5, 100, 1_000, 20_000))
        return kind, raw(
            draw.choice(
                ("[" * depth + "]" * depth, "{a: " * depth + "1" + "}" * depth, "[" * depth)
            )
        )
    if kind == "tag":
        return kind, raw(
            draw.choice(
                (
                    "!!float x",
                    "!!int zz",
                    "!!python/object/apply:os.system ['true']",
                    "!!binary '*'",
                    "!!timestamp x",
                    "!!set {a}",
                    "!!bool x",
                    "!!null x",
                    "!x 1",
                    "!!omap [a]",
                    "!!pairs [a]",
                    "2026-13-45",
                    "2026-01-01",
                    "!!str [a]",
                    "!!map 1",
                )
            )
        )
    if kind == "number":
        return kind, raw(
            draw.choice(
                (
                    "9" * 5000,
                    "0x" + "f" * 5000,
                    "-" + "9" * 400,
                    "1e999",
                    "0." + "1" * 5000,
                    "1:2:3:4:99999",
                    "0o" + "7" * 9000,
                    ".nan",
                    "-.inf",
                    "1e-320",
                )
            )
        )
    if kind == "alias":
        levels = draw.randrange(2, 12)
        lines = ["&a0 [x, x]"] + [
            f"&a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, levels)
        ]
        return kind, raw("[" + ", ".join(lines) + draw.choice(("]", ", *none]", ", &b [*b]]")))
    if kind == "section":
        name = draw.choice(list(tree))
        return kind, (yaml.safe_dump(tree) + yaml.safe_dump({name: tree[name]})).encode()
    if kind == "key":
        parent = get(tree, path[:-1])
        if isinstance(parent, dict):
            fresh = draw.choice((f"{path[-1]}x", "x" * 50_000, 1, None, "\x1b[2J", "é", "a.b", ""))
            parent = {**parent, fresh: parent[path[-1]]}
            tree = put(tree, path[:-1], parent) if path[:-1] else parent
        return kind, yaml.safe_dump(tree, allow_unicode=True).encode("utf-8", "replace")
    data = bytearray(yaml.safe_dump(tree).encode())
    if kind == "cut":
        return kind, bytes(data[: draw.randrange(len(data))])
    for _ in range(draw.randrange(1, 8)):
        at = draw.randrange(len(data))
        if kind == "bytes":
            data[at] = draw.randrange(256)
        else:
            data[at:at] = draw.choice(
                (
                    b"\0",
                    b"\xff\xfe",
                    b"\t",
                    b"- ",
                    b": ",
                    b"{",
                    b"&x ",
                    b"*x ",
                    b"? ",
                    b"%",
                    b"---\n",
                    b"...\n",
                    b"|\n",
                )
            )
    return kind, bytes(data)


def looked_at(path: Path) -> str:
    """What becomes of a configuration before anything runs: 'accepted', or 'refused'. Raises what a
    user would see as a traceback.
    """
    from prefloop import compose
    from prefloop.config.load import parse
    from prefloop.errors import PrefloopError
    from prefloop.pipeline.pipeline import Pipeline
    from prefloop.runs.runtime import Runtime

    try:
        with contextlib.redirect_stdout(io.StringIO()):
            config = parse(["--config", str(path)], "rlhf.py", "")
            runtime = Runtime(
                config.backbone,
                config.generation,
                config.rollout,
                config.seed,
                config.output,
                config.trackers,
            )
            Pipeline(compose(config), runtime)._preflight()
    except PrefloopError as error:
        if len(str(error)) > LONGEST:
            raise AssertionError(
                f"a message of {len(str(error)):,} characters: {str(error)[:300]}"
            ) from None
        return "refused"
    return "accepted"


def mutations(folder: Path, model: Path, seed: int, size: int) -> tuple[Counter[str], list[str]]:
    """Counts by mutation and result, and failures."""
    trees, counts, failures = bases(folder, model), Counter[str](), []
    for name, tree in zip(EXAMPLES, trees, strict=True):
        (folder / "mutated.yaml").write_text(yaml.safe_dump(tree))
        if looked_at(folder / "mutated.yaml") != "accepted":
            failures.append(f"examples/{name}.yaml is refused as it stands")
    for number in range(size):
        draw = random.Random(f"{seed}:{number}")
        kind, data = mutated(draw.choice(trees), draw)
        (folder / "mutated.yaml").write_bytes(data)
        try:
            counts[f"{kind}: {looked_at(folder / 'mutated.yaml')}"] += 1
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            counts[f"{kind}: FAILED"] += 1
            kept = Path(tempfile.gettempdir()) / f"settings-{seed}-{number}.yaml"
            kept.write_bytes(data)
            last = traceback.extract_tb(error.__traceback__)[-1]
            failures.append(
                f"{kind}, {kept}: {type(error).__name__}: {str(error)[:300]}"
                f" ({last.filename}:{last.lineno})"
            )
    return counts, failures


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=1200, help="mutated files")
    options = parser.parse_args()
    from tiny import tiny_model

    with tempfile.TemporaryDirectory() as place:
        counts, failures = mutations(
            Path(place), tiny_model(Path(place) / "model"), options.seed, options.size
        )
    print(f"mutated files: {sum(counts.values())}, failed {len(failures)}")
    for what, count in sorted(counts.items()):
        print(f"  {what:22} {count}")
    print("\n".join(failures))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
