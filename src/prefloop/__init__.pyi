"""The public names of prefloop and where they live.

``__init__.py`` reads this file to load them on first use.
"""

from prefloop.artifacts.store import Artifact as Artifact
from prefloop.base.jsonl import read_rows as read_rows
from prefloop.base.jsonl import write_rows as write_rows
from prefloop.config import AdapterConfig as AdapterConfig
from prefloop.config import BackboneConfig as BackboneConfig
from prefloop.config import DataConfig as DataConfig
from prefloop.config import EvaluateConfig as EvaluateConfig
from prefloop.config import GenerationConfig as GenerationConfig
from prefloop.config import JudgeConfig as JudgeConfig
from prefloop.config import KLConfig as KLConfig
from prefloop.config import LabelConfig as LabelConfig
from prefloop.config import OptimConfig as OptimConfig
from prefloop.config import PPOConfig as PPOConfig
from prefloop.config import PreferenceConfig as PreferenceConfig
from prefloop.config import RewardConfig as RewardConfig
from prefloop.config import RLHFConfig as RLHFConfig
from prefloop.config import SampleConfig as SampleConfig
from prefloop.config import SFTStageConfig as SFTStageConfig
from prefloop.config import TrlConfig as TrlConfig
from prefloop.config.load import load_config as load_config
from prefloop.data.sources import load_comparisons as load_comparisons
from prefloop.evaluation.answers import read_answers as read_answers
from prefloop.evaluation.compare import judge_answers as judge_answers
from prefloop.evaluation.judges.cache import VerdictCache as VerdictCache
from prefloop.evaluation.judges.verdict import Verdict as Verdict
from prefloop.labeling.argilla.connection import Connection as Connection
from prefloop.labeling.argilla.convert import from_argilla as from_argilla
from prefloop.labeling.argilla.convert import to_argilla as to_argilla
from prefloop.labeling.argilla.records import Argilla as Argilla
from prefloop.pipeline.algorithms import register as register
from prefloop.pipeline.compose import compose as compose
from prefloop.pipeline.compose import run as run
from prefloop.pipeline.pipeline import Pipeline as Pipeline
from prefloop.pipeline.stage import Stage as Stage
from prefloop.pipeline.stages.answer import respond as respond
from prefloop.pipeline.stages.evaluate import Evaluate as Evaluate
from prefloop.pipeline.stages.kto import KTO as KTO
from prefloop.pipeline.stages.label import Label as Label
from prefloop.pipeline.stages.ppo import PPO as PPO
from prefloop.pipeline.stages.preference import Preference as Preference
from prefloop.pipeline.stages.reference import Reference as Reference
from prefloop.pipeline.stages.reward import RewardModel as RewardModel
from prefloop.pipeline.stages.sample import Sample as Sample
from prefloop.pipeline.stages.sft import SFT as SFT
from prefloop.pipeline.stages.trl import Trl as Trl
from prefloop.runs.open import open_policies as open_policies
from prefloop.runs.runtime import Runtime as Runtime

__version__: str

__all__: list[str]

def where(name: str) -> str | None: ...
