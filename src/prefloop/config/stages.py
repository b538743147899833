"""Settings of each stage but PPO."""

from __future__ import annotations

from dataclasses import field
from typing import Literal

from pydantic.dataclasses import dataclass

from prefloop.config.base import STRICT, DataSource, aside
from prefloop.config.common import OptimConfig, optim
from prefloop.config.judge import JudgeConfig
from prefloop.config.names import Named, Place
from prefloop.config.ranges import (
    Count,
    Draws,
    Epochs,
    Few,
    MinorShare,
    NotNegative,
    PartShare,
    Positive,
    Rate,
    SomeShare,
    Whole,
)
from prefloop.errors import ConfigError


@dataclass(config=STRICT)
class SFTStageConfig:
    """Supervised fine-tuning on demonstrations."""

    epochs: Epochs = 1.0
    """Passes over the demonstrations; a part of one takes that share of them, at least one."""
    batch_size: Count = 8
    """Demonstrations an optimizer step."""
    turns: Literal["all", "last"] = "all"
    """Assistant turns of a conversation that are learnt: all of them, or the last. Turns that the
    file masks out (`weight: 0`) and what it calls the prompt are context in either case.
    """
    eval_share: PartShare = 0.0
    """Share of the prompts held out to look at the loss on, at least one of them; 0 holds out none.
    The weights of the best look are kept, not the last.
    """
    eval_every: Count = 20
    """Optimizer steps between two looks."""
    patience: Count | None = None
    """Stop after so many looks without a better one. Default: train to the end."""
    optim: OptimConfig = optim(learning_rate=2e-4)
    """Optimiser and schedule."""

    def __post_init__(self) -> None:
        self.optim.require("sft")

    def require(self) -> None:
        """Raise ``ConfigError`` for values that contradict each other; asked once file, flags and
        preset are put together.
        """
        if self.patience is not None and not self.eval_share:
            raise ConfigError(
                f"sft.patience is {self.patience} with sft.eval_share 0: waiting for a better"
                " held-out loss needs demonstrations that are held out, such as sft.eval_share 0.1"
            )


@dataclass(config=STRICT)
class SampleConfig:
    """Candidate responses from the SFT model, in later rounds from the policy of the round
    before.
    """

    candidates: Count = 4
    """Responses a prompt."""


@dataclass(config=STRICT)
class AnnotatorConfig:
    """A simulated annotator: votes for A with probability sigmoid((gold(A) - gold(B)) / noise)."""

    name: str = "annotator"
    """Name that the votes carry."""
    noise: NotNegative = 0.1
    """Temperature on the gold-score difference; 0 always votes for the better one."""


@dataclass(config=STRICT)
class LabelConfig:
    """Where votes come from."""

    source: Literal["simulated", "file", "argilla"] = "simulated"
    """simulated: annotators vote on sampled candidates by a gold score. file: data.comparisons.
    argilla: people vote on sampled candidates.
    """
    pairs_per_prompt: Count = 4
    """Pairs of candidates put to the vote for each prompt; all that there are where there are
    fewer.
    """
    annotators: list[AnnotatorConfig] = field(default_factory=list)
    """The simulated annotators."""
    choose: Literal["auto", "disagreement", "margin", "random", "length"] = "auto"
    """Which pairs rounds after the first put to the vote: those that the members of the reward
    model disagree on, are undecided on, any, or those that differ most in length. auto:
    disagreement, and margin where the reward model has one member.
    """
    pairs: Count | None = None
    """Pairs of each round after the first. Default: half of those that could be put to the vote, at
    most as many as pairs_per_prompt gives.
    """
    dataset: str | None = None
    """Argilla's dataset. Default: the name of the run, with -simulated where simulated annotators
    vote.
    """
    workspace: str = "default"
    """Argilla's workspace."""
    home: Place | None = aside(default=None)
    """Home of a server of `prefloop label up`. Default: the user's own, unless url or
    ARGILLA_API_URL names a server.
    """
    url: str | None = None
    """Address of another Argilla; its key comes from ARGILLA_API_KEY."""
    guidelines: Place | None = aside(default=None)
    """Markdown file with what annotators should know."""
    min_submitted: Count = 1
    """Votes that complete a pair."""
    enough: SomeShare = aside(default=1.0)
    """Share of a round's pairs that must be complete before training goes on with those that have
    votes.
    """
    poll_seconds: Positive = aside(default=5.0)
    """Seconds between two looks at how far the annotators are."""
    patience: Positive = aside(default=3600.0)
    """Seconds that a server may be silent during the wait before the run stops; the same command
    goes on.
    """


Aggregation = Literal["share", "majority", "dawid_skene", "bradley_terry"]
"""How the votes on a comparison become the probability that its first response is better:
docs/agreement.md.
"""


@dataclass(config=STRICT)
class RewardConfig:
    """Bradley-Terry reward model: an adapter and a scalar head, or several, trained on votes."""

    members: Few = 1
    """Adapters, each with its head, trained on bootstraps of the comparisons; their mean is the
    score, their spread its uncertainty.
    """
    epochs: Epochs = 1.0
    """Passes over the comparisons; a part of one takes that share of the prompts, at least one."""
    batch_pairs: Count = 32
    """Pairs an optimizer step."""
    holdout: PartShare = 0.1
    """Share of prompts, in whole ones, kept out of training to measure accuracy; 0 keeps out
    none.
    """
    aggregation: Aggregation = "share"
    """Votes to labels. share, majority: each comparison alone; dawid_skene, bradley_terry: also how
    far each annotator can be trusted.
    """
    margin: NotNegative = 0.0
    """Difference of scores that a unanimous vote asks for, 0 for none; a divided one asks for its
    share of it.
    """
    center: NotNegative = 0.0
    """Weight of (score + score)², which keeps scores around 0; a weight of 0 leaves it out."""
    head_learning_rate: Rate = 3e-4
    """Learning rate of the scalar head."""
    optim: OptimConfig = optim(learning_rate=3e-4)
    """Optimiser and schedule of the adapter."""

    def __post_init__(self) -> None:
        self.optim.require("reward")


@dataclass(config=STRICT)
class PreferenceConfig:
    """Learning straight from comparisons (DPO and its relatives); the loss is chosen by --algo."""

    beta: Positive = 0.1
    """Strength of the pull to the reference (IPO: tau)."""
    flipped_share: MinorShare = 0.1
    """Assumed share of flipped votes (below one half; 0: none), for the losses that allow for it:
    cdpo and robust.
    """
    soft_labels: bool = True
    """Train on the probability that aggregation gives instead of on the side of one half that it
    lies on.
    """
    aggregation: Aggregation = "share"
    """Votes to labels. share, majority: each comparison alone; dawid_skene, bradley_terry: also how
    far each annotator can be trusted.
    """
    ipo_reduction: Literal["mean", "sum"] = "mean"
    """IPO's log-ratios: per token (TRL's reading) or summed (the paper's code)."""
    simpo_beta: Positive = 2.0
    """SimPO's scale of the difference of mean log-probs a token."""
    margin: NotNegative = 1.0
    """SimPO's target margin gamma; 0 for none."""
    sft_weight: Positive = 0.1
    """ORPO's lambda."""
    nll_weight: NotNegative = 1.0
    """CPO's weight of the preferred response's negative mean log-prob; 0 leaves it out."""
    weights: Literal["equal", "votes", "agreement"] = "equal"
    """What a pair counts for, its mean over the data being 1: all the same, its number of votes, or
    how far they agree (|2p - 1|).
    """
    balance_thumbs: bool = True
    """KTO: weigh thumbs up and down so that both kinds count the same in all."""
    reference: Literal["live", "cached"] = "live"
    """Reference log-probs: computed in every step by switching the adapter, or once for all pairs
    and kept in the store.
    """
    epochs: Epochs = 1.0
    """Passes over the comparisons; a part of one takes that share of the prompts, at least one."""
    batch_pairs: Count = 32
    """Pairs an optimizer step."""
    optim: OptimConfig = optim(learning_rate=5e-4)
    """Optimiser and schedule."""

    def __post_init__(self) -> None:
        self.optim.require("preference")


@dataclass(config=STRICT)
class EvaluateConfig:
    """The final comparison on evaluation prompts."""

    samples: Count = 4
    """Responses a prompt and policy."""
    temperature: NotNegative | None = None
    """Sampling temperature of the answers; 0 takes the likeliest token each time, and one answer a
    prompt. Default: generation.temperature.
    """
    base: bool = True
    """Whether the bare model answers too, so that the comparison shows what SFT itself has
    changed.
    """
    resamples: Draws = 2000
    """Bootstrap resamples behind each 95 % interval."""
    judge: Named | None = None
    """A further judge: openai:<model>@<base_url>, local:<model>, reward:<run>, or a Python function
    file.py:function.
    """
    asking: JudgeConfig = field(default_factory=JudgeConfig)
    """How the judge is asked."""
    reward_model: Literal["auto", "always", "never"] = "auto"
    """Whether a reward model that the algorithm does not learn from (those on pairs and thumbs) is
    trained to judge. auto: where there is neither a judge nor a gold scorer, or where candidates
    are put to the vote. One that the run has trained already judges in any case.
    """


@dataclass(config=STRICT)
class BenchConfig:
    """Benchmarks of the base, the SFT model and every policy; none unless tasks or a domain set are
    named.
    """

    tasks: list[Named] = field(default_factory=list)
    """lm-eval's tasks and groups by name, YAML files, folders of YAML files; these run no code."""
    domain: list[DataSource] = field(default_factory=list)
    """Files of prompts with references: ROUGE, BLEU, F1 and exact match of greedy answers."""
    data: list[Named] = field(default_factory=list)
    """TASK=FILE: other rows for a local task."""
    limit: Count | None = None
    """First so many questions of each task."""
    batch_size: Count = 8
    """Sequences of one forward pass; padding reaches the last bits of the numbers."""
    num_fewshot: Whole | None = None
    """Examples before each question, 0 for none, where the task leaves it open."""
    apply_chat_template: bool = False
    """Ask through the chat template instead of as plain text."""
    max_new_tokens: Count = 128
    """Longest answer to a prompt of a domain set."""
