"""Which tasks to run: lm-eval's own by name, local ones by file or folder.

A local file may come from anywhere, so it must not run code: it holds only the keys below, no
``!function``, no metric that is downloaded, and its templates are rendered in Jinja's sandbox
(``sandboxed``). lm-eval's own tasks are part of an installed package and may do more.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.metadata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from prefloop.base.sealed import digest, file_digest
from prefloop.errors import ConfigError, DataError, nearest

KEYS = frozenset(
    {
        "task",
        "task_alias",
        "tag",
        "include",
        "dataset_path",
        "dataset_name",
        "dataset_kwargs",
        "training_split",
        "validation_split",
        "test_split",
        "fewshot_split",
        "output_type",
        "doc_to_text",
        "doc_to_target",
        "doc_to_choice",
        "gen_prefix",
        "target_delimiter",
        "fewshot_delimiter",
        "description",
        "num_fewshot",
        "generation_kwargs",
        "repeats",
        "filter_list",
        "metric_list",
        "should_decontaminate",
        "doc_to_decontamination_query",
        "metadata",
    }
)
"""What a local task may say; none of it makes lm-eval import or download code."""
DATASET_KEYS = frozenset({"data_files", "data_dir", "field", "encoding", "delimiter"})
SUFFIXES = (".yaml", ".yml")


@dataclasses.dataclass(frozen=True)
class TaskSpec:
    """One task or group to run on every adapter."""

    name: str
    spec: str | dict[str, Any]
    """What lm-eval's ``TaskManager.load`` takes: a name, a path, or the settings of a local
    file.
    """
    digest: str
    """Changes when the local file or its data do; of lm-eval's own tasks it is the name, and the
    version is in the settings.
    """


def files_of(pairs: Sequence[str]) -> dict[str, Path]:
    """``TASK=FILE`` taken apart. Raises ``ConfigError`` for anything else."""
    out = {}
    for pair in pairs:
        task, equals, file = pair.partition("=")
        if not (task and equals and file):
            raise ConfigError(f"--data takes TASK=FILE, found '{pair}'")
        out[task] = Path(file)
    return out


def find(
    names: Sequence[str], data: Mapping[str, Path] | None = None, trust_code: bool = False
) -> list[TaskSpec]:
    """The tasks that ``names`` stand for: lm-eval's names, YAML files, folders of them; ``data``
    puts other data files under local tasks.

    Raises ``ConfigError`` for an unknown name, a file that would run code (unless ``trust_code``)
    or two tasks of one name, ``DataError`` for a missing data file.
    """
    data = dict(data or {})
    found: list[TaskSpec] = []
    for name in names:
        path = Path(name)
        if path.is_dir():
            files = sorted(p for p in path.iterdir() if p.suffix in SUFFIXES)
            if not files:
                raise ConfigError(f"task folder '{name}' holds no YAML file")
            found += [_local(file, data, trust_code) for file in files]
        elif path.is_file() or path.suffix in SUFFIXES or "/" in name:
            found.append(_local(path, data, trust_code))
        else:
            found.append(TaskSpec(name, name, digest({"task": name})))
    if data:
        raise ConfigError(
            f"--data names '{next(iter(data))}', which is none of the local tasks of this command"
        )
    doubles = [t.name for i, t in enumerate(found) if t.name in {other.name for other in found[:i]}]
    if doubles:
        raise ConfigError(
            f"two tasks are called '{doubles[0]}': give one of them another name ('task:' in its"
            " file)"
        )
    return found


def _local(path: Path, data: dict[str, Path], trust_code: bool) -> TaskSpec:
    config, runs_code = _read(path, trust_code)
    name = config.get("task")
    if not isinstance(name, str):
        raise ConfigError(
            f"{path} names no single task ('task: NAME'): give the files of a group one by one, or"
            " lm-eval's own groups by name"
        )
    if runs_code:
        if name in data:
            raise ConfigError(
                f"{path} runs code, so --data cannot change it: write the data file into it"
            )
        # lm-eval reads such a file itself, with the Python beside it.
        beside = {p.name: file_digest(p) for p in sorted(path.parent.glob("*.py"))}
        return TaskSpec(name, str(path), digest({"task": file_digest(path), "code": beside}))
    kwargs = dict(config.get("dataset_kwargs") or {})
    if name in data:
        split = config.get("test_split") or config.get("validation_split")
        if not isinstance(split, str):
            raise ConfigError(
                f"{path} names neither test_split nor validation_split: --data cannot tell which"
                " rows to replace"
            )
        given = kwargs.get("data_files")
        kwargs["data_files"] = {
            **(given if isinstance(given, dict) else {}),
            split: str(data.pop(name)),
        }
        config["dataset_kwargs"] = kwargs
    hashes = {str(k): file_digest(file) for k, file in enumerate(_data_files(kwargs, name))}
    rest = {
        k: v for k, v in kwargs.items() if k != "data_files"
    }  # files count by their bytes, not by their names
    return TaskSpec(
        name, config, digest({"task": {**config, "dataset_kwargs": rest}, "data": hashes})
    )


def _data_files(kwargs: Mapping[str, Any], name: str) -> Iterator[Path]:
    """The local files behind a task's data. Raises ``DataError`` for one that is not there."""
    given = kwargs.get("data_files") or []
    for value in given.values() if isinstance(given, dict) else [given]:
        for one in value if isinstance(value, list) else [value]:
            path = Path(str(one))
            if "://" in str(one):
                continue
            if not path.is_file():
                raise DataError(
                    f"task {name}: data file '{path}' does not exist (relative paths start at the"
                    f" current folder): name yours with --data {name}=FILE"
                )
            yield path


def _read(path: Path, trust_code: bool, seen: tuple[Path, ...] = ()) -> tuple[dict[str, Any], bool]:
    """A task file with what it includes, and whether it runs code."""
    if path.resolve() in seen:
        raise ConfigError(f"{path} includes itself")
    code: list[str] = []

    class Loader(yaml.SafeLoader):
        """Knows ``!function`` only to find it."""

    def function(loader: yaml.SafeLoader, node: yaml.Node) -> str:
        code.append(f"line {node.start_mark.line + 1}: !function {getattr(node, 'value', '')}")
        return ""

    Loader.add_constructor("!function", function)
    try:
        config = yaml.load(path.read_text(encoding="utf-8"), Loader=Loader)
    except FileNotFoundError:
        raise ConfigError(f"task file '{path}' does not exist") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"task file '{path}' cannot be read: {error}") from None
    if not isinstance(config, dict):
        raise ConfigError(f"task file '{path}' holds no keys such as 'task:' and 'dataset_path:'")
    code += _reaches_for_code(config)
    if code and not trust_code:
        raise ConfigError(
            f"task file '{path}' would run code ({code[0]}): prefloop runs none from data. Say it"
            " with Jinja expressions, or trust the file with --trust-task-code"
        )
    included: dict[str, Any] = {}
    runs_code = bool(code)
    given = config.pop("include", None) or []
    for name in given if isinstance(given, list) else [given]:
        other, also = _read(path.parent / str(name), trust_code, (*seen, path.resolve()))
        included |= {k: v for k, v in other.items() if k != "task_list"}
        runs_code |= also
    return included | config, runs_code


def _reaches_for_code(config: Mapping[Any, Any]) -> list[str]:
    """Settings by which lm-eval would import or download code, or of which nobody here knows
    whether it would.
    """
    found = [f"key '{key}'" for key in config if key not in KEYS]
    found += [
        f"dataset_kwargs.{key}"
        for key in config.get("dataset_kwargs") or {}
        if key not in DATASET_KEYS
    ]
    for metric in config.get("metric_list") or []:
        if (
            not isinstance(metric, dict)
            or metric.get("hf_evaluate")
            or metric.get("metric") not in _known_metrics()
        ):
            found.append(
                f"metric {metric.get('metric') if isinstance(metric, dict) else metric}, which"
                " lm-eval would download"
            )
    return found


@functools.cache
def _known_metrics() -> frozenset[str]:
    import lm_eval.api.metrics  # noqa: F401 - registers them
    from lm_eval.api.registry import METRIC_REGISTRY

    return frozenset(METRIC_REGISTRY)


def load(task: TaskSpec) -> dict[str, Any]:
    """lm-eval's task objects with their data. Raises ``ConfigError`` for an unknown name or data
    that cannot be had.
    """
    from jinja2.exceptions import SecurityError
    from lm_eval.tasks import TaskManager

    own = isinstance(task.spec, str) and task.spec == task.name
    manager = _own_tasks() if own else TaskManager(include_defaults=False)
    if own and task.name not in manager.all_tasks:
        raise ConfigError(
            f"lm-eval knows no task '{task.name}' ({nearest(task.name, manager.all_tasks)}); a"
            " local one is named by its file"
        )
    try:
        with sandboxed():  # building a task renders its templates on the first rows
            return dict(manager.load([task.spec]))
    except SecurityError as error:
        raise ConfigError(
            f"task '{task.name}': its template reaches for code, and prefloop runs none from data"
            f" ({error})"
        ) from error
    except (
        Exception
    ) as error:  # downloads, builders and readers of many libraries; each raises what it likes
        said = (str(error).splitlines() or [""])[0][:300]
        raise ConfigError(
            f"task '{task.name}' cannot be loaded: {type(error).__name__}: {said}. Its data must be"
            " in the cache of the hub or within reach"
        ) from error


@functools.cache
def _own_tasks() -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager()


@contextlib.contextmanager
def sandboxed() -> Iterator[None]:
    """Within this block lm-eval renders templates in Jinja's sandbox, where they reach no attribute
    that leads to code.
    """
    import lm_eval.utils
    from jinja2 import BaseLoader, StrictUndefined
    from jinja2.sandbox import SandboxedEnvironment

    before = lm_eval.utils.env
    inside = SandboxedEnvironment(
        loader=BaseLoader(), undefined=StrictUndefined, keep_trailing_newline=True
    )
    inside.filters.update(before.filters)
    lm_eval.utils.env = inside
    try:
        yield
    finally:
        lm_eval.utils.env = before


def version() -> str:
    """lm-eval's version. Raises ``ConfigError`` when it is not installed."""
    try:
        return importlib.metadata.version("lm_eval")
    except importlib.metadata.PackageNotFoundError:
        raise ConfigError("prefloop bench needs lm-eval: pip install 'prefloop[bench]'") from None
