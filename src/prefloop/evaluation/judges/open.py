"""A judge from its name: ``openai:<model>@<base_url>``, ``local:<model>``, ``reward:<run>``,
``file.py:function``.

httpx and torch are imported by the forms that need them alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from prefloop.base.redact import without_secrets
from prefloop.config import JudgeConfig
from prefloop.errors import ConfigError
from prefloop.evaluation.judges.assessor import Grader
from prefloop.evaluation.judges.graders import FunctionGrader
from prefloop.evaluation.judges.judge import ScoreJudge
from prefloop.evaluation.judges.usage import Prices
from prefloop.records import Prompt

if TYPE_CHECKING:
    from prefloop.evaluation.judges.language_model import LanguageModel, ModelJudge
    from prefloop.models.backbone import Backbone

FORMS = (
    "openai:<model>@<base_url> (an endpoint, such as openai:qwen@http://127.0.0.1:8000/v1)",
    "local:<model name or folder> (a language model in this process)",
    "reward:<run folder, run:reward, reward artifact or exported one> (the reward ensemble)",
    "path/to/file.py:function (a Python function of prompt and response)",
)


def open_judge(
    spec: str,
    options: JudgeConfig | None = None,
    *,
    prompts: Iterable[Prompt] = (),
    backbone: Backbone | None = None,
    models: Path = Path("runs/.store/models"),
) -> ModelJudge | ScoreJudge:
    """The judge that ``spec`` names, to be closed after use.

    ``prompts`` give ids, ``meta`` and reference answers (``meta["reference"]``), ``backbone`` a
    loaded one for ``reward:``, and ``models`` is the folder that a model from a wheel is unpacked
    to. Raises ``ConfigError`` with the known forms for any other ``spec``.
    """
    options, prompts = options or JudgeConfig(), list(prompts)
    if options.mode == "pairwise" and _is_model(spec):
        from prefloop.evaluation.judges.language_model import ModelJudge
        from prefloop.evaluation.judges.modes import Pairwise

        criteria = _criteria(options)
        return ModelJudge(
            _model(spec, options, models), Pairwise(criteria) if criteria else Pairwise(), prompts
        )
    grader = open_grader(spec, options, backbone=backbone, models=models)
    return ScoreJudge(grader, tie_margin=options.tie_margin, prompts=prompts)


def open_grader(
    spec: str,
    options: JudgeConfig | None = None,
    *,
    backbone: Backbone | None = None,
    models: Path = Path("runs/.store/models"),
) -> Grader:
    """The grader that ``spec`` names, for scores of single responses. Raises ``ConfigError`` for a
    language model in mode pairwise.
    """
    options = options or JudgeConfig()
    if _is_model(spec):
        from prefloop.evaluation.judges.language_model import ModelGrader
        from prefloop.evaluation.judges.modes import Grading, Rubric
        from prefloop.evaluation.judges.rubric import read_rubric

        given = {"criteria": criteria} if (criteria := _criteria(options)) else {}
        if options.rubric is not None:
            return ModelGrader(
                _model(spec, options, models), Rubric(read_rubric(options.rubric), **given)
            )
        if options.mode == "pairwise":
            raise ConfigError("a judge in mode pairwise gives no grades: take mode grade or rubric")
        return ModelGrader(_model(spec, options, models), Grading(**given))
    if options.mode != "pairwise":
        raise ConfigError(
            f"judge mode {options.mode} is for language models (openai: or local:), not for"
            f" {_shown(spec)}"
        )
    if spec.startswith("reward:"):
        from prefloop.evaluation.judges.ensemble import RewardGrader

        return RewardGrader(Path(_rest(spec)), backbone)
    if spec.rpartition(":")[0].endswith(".py"):
        return FunctionGrader(spec)
    raise ConfigError(
        f"judge {_shown(spec)}: unknown form. A judge is one of\n       " + "\n       ".join(FORMS)
    )


def _is_model(spec: str) -> bool:
    return spec.startswith(("openai:", "local:"))


def _model(spec: str, options: JudgeConfig, models: Path) -> LanguageModel:
    if spec.startswith("local:"):
        from prefloop.evaluation.judges.local import LocalModel

        return LocalModel(
            _rest(spec),
            models,
            engine=options.engine,
            temperature=options.temperature or 0.0,
            max_tokens=options.max_tokens or 1024,
            structured=options.structured,
            batch_size=options.max_concurrency,
            prices=Prices(options.price_prompt, options.price_completion),
        )
    from prefloop.base.endpoint import Pace
    from prefloop.evaluation.judges.openai import ChatEndpoint

    name, at, url = _rest(spec).partition("@http")
    if not at or not name:
        raise ConfigError(f"judge 'openai:...': expected {FORMS[0]}")
    return ChatEndpoint(
        f"http{url}",
        name,
        api_key_env=options.api_key_env,
        temperature=options.temperature,
        max_tokens=options.max_tokens,
        structured=options.structured,
        timeout=options.timeout,
        max_retries=options.max_retries,
        backoff=options.backoff,
        max_concurrency=options.max_concurrency,
        pace=Pace(options.requests_per_minute) if options.requests_per_minute else None,
        prices=Prices(options.price_prompt, options.price_completion),
        extra_body=options.extra_body,
    )


def _criteria(options: JudgeConfig) -> str:
    """The text of the criteria; empty for the default ones."""
    given = (options.criteria or "").strip()
    if "\n" in given or not given.endswith((".txt", ".md")):
        return given
    try:
        return Path(given).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        raise ConfigError(
            f"judge criteria: '{given}' cannot be read as UTF-8 text; check the path"
        ) from None


def _rest(spec: str) -> str:
    rest = spec.partition(":")[2]
    if not rest:
        raise ConfigError(
            f"judge '{spec}' names nothing. A judge is one of\n       " + "\n       ".join(FORMS)
        )
    return rest


def _shown(spec: str) -> str:
    return f"'{without_secrets(spec):.80}'"
