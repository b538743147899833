"""Settings of every stage except PPO."""

from __future__ import annotations

from dataclasses import field
from typing import Literal

from pydantic.dataclasses import dataclass

from prefloop.config.base import STRICT, DataSource, Named, Place, aside
from prefloop.config.common import OptimConfig, optim
from prefloop.config.judge import JudgeConfig
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
    """Passes over the demonstrations. A fraction takes that share of them, at least one."""
    batch_size: Count = 8
    """Demonstrations in an optimizer step."""
    turns: Literal["all", "last"] = "all"
    """Which assistant turns of a conversation are learnt: all, or the last one. Turns that the file
    masks (`weight: 0`) and turns of the prompt are always context.
    """
    eval_share: PartShare = 0.0
    """Share of the prompts held out to measure the loss, at least one prompt; 0 holds out none. The
    weights with the best held-out loss are kept, not the last ones.
    """
    eval_every: Count = 20
    """Optimizer steps between two measurements of the held-out loss."""
    patience: Count | None = None
    """Stop after this many measurements without a better one. Default: train to the end."""
    optim: OptimConfig = optim(learning_rate=2e-4)
    """Optimizer and schedule."""

    def __post_init__(self) -> None:
        self.optim.require("sft")

    def require(self) -> None:
        """Raise ``ConfigError`` for values that contradict each other. It is called once file,
        flags and preset are merged.
        """
        if self.patience is not None and not self.eval_share:
            raise ConfigError(
                f"sft.patience is {self.patience} with sft.eval_share 0: waiting for a better"
                " held-out loss needs demonstrations that are held out, such as sft.eval_share 0.1"
            )


@dataclass(config=STRICT)
class SampleConfig:
    """Candidate responses from the SFT model, or in later rounds from the policy of the round
    before.
    """

    candidates: Count = 4
    """Responses to each prompt."""


@dataclass(config=STRICT)
class AnnotatorConfig:
    """A simulated annotator, who votes for A with probability sigmoid((gold(A) - gold(B)) /
    noise).
    """

    name: str = "annotator"
    """Name of the annotator in the votes."""
    noise: NotNegative = 0.1
    """Temperature on the difference of the gold scores; 0 always votes for the better response."""


@dataclass(config=STRICT)
class LabelConfig:
    """Where votes come from."""

    source: Literal["simulated", "file", "argilla"] = "simulated"
    """simulated: simulated annotators vote on sampled candidates by a gold score. file: the votes
    are in data.comparisons. argilla: people vote on sampled candidates.
    """
    pairs_per_prompt: Count = 4
    """Pairs of candidates put to the vote for each prompt; all pairs where there are fewer."""
    annotators: list[AnnotatorConfig] = field(default_factory=list)
    """The simulated annotators."""
    choose: Literal["auto", "disagreement", "margin", "random", "length"] = "auto"
    """Which pairs the rounds after the first put to the vote: those on which the members of the
    reward model disagree, those on which they are undecided (margin), random ones, or those that
    differ most in length. auto: disagreement, or margin where the reward model has one member.
    """
    pairs: Count | None = None
    """Pairs in each round after the first. Default: half of the possible pairs, and at most as many
    as pairs_per_prompt gives.
    """
    dataset: str | None = None
    """Dataset in Argilla. Default: the name of the run, with -simulated where simulated annotators
    vote.
    """
    workspace: str = "default"
    """Workspace in Argilla."""
    home: Place | None = aside(default=None)
    """Home of a server of `prefloop label up`. Default: the user's own home, unless url or
    ARGILLA_API_URL names a server.
    """
    url: str | None = None
    """Address of another Argilla server. Its key comes from ARGILLA_API_KEY."""
    guidelines: Place | None = aside(default=None)
    """Markdown file with guidelines for annotators."""
    min_submitted: Count = 1
    """Votes that complete a pair."""
    enough: SomeShare = aside(default=1.0)
    """Share of a round's pairs that must be complete before training goes on with the pairs that
    have votes.
    """
    poll_seconds: Positive = aside(default=5.0)
    """Seconds between two checks of the annotators' progress."""
    patience: Positive = aside(default=3600.0)
    """Seconds that a server may be silent during the wait before the run stops. The same command
    continues it.
    """


Aggregation = Literal["share", "majority", "dawid_skene", "bradley_terry"]
"""How the votes on a comparison become the probability that its first response is better; see
docs/agreement.md.
"""


@dataclass(config=STRICT)
class RewardConfig:
    """Bradley-Terry reward model, trained on votes: an adapter with a scalar head, or an ensemble
    of several.
    """

    members: Few = 1
    """Members of the ensemble, each an adapter with its head, trained on bootstraps of the
    comparisons. Their mean is the score, their spread its uncertainty.
    """
    epochs: Epochs = 1.0
    """Passes over the comparisons; a part of one takes that share of the prompts, at least one."""
    batch_pairs: Count = 32
    """Pairs an optimizer step."""
    holdout: PartShare = 0.1
    """Share of the prompts kept out of training to measure accuracy; 0 keeps out none."""
    aggregation: Aggregation = "share"
    """Votes to labels. share, majority: each comparison alone; dawid_skene, bradley_terry: also how
    far each annotator can be trusted.
    """
    margin: NotNegative = 0.0
    """Difference of scores that a unanimous vote requires; a divided vote requires its share of it.
    0 for none.
    """
    center: NotNegative = 0.0
    """Weight of (score + score)², which keeps scores around 0; 0 for none."""
    head_learning_rate: Rate = 3e-4
    """Learning rate of the scalar head."""
    optim: OptimConfig = optim(learning_rate=3e-4)
    """Optimizer and schedule of the adapter."""

    def __post_init__(self) -> None:
        self.optim.require("reward")


@dataclass(config=STRICT)
class PreferenceConfig:
    """Learning straight from comparisons (DPO and its relatives). --algo chooses the loss."""

    beta: Positive = 0.1
    """Strength of the pull to the reference (IPO: tau)."""
    flipped_share: MinorShare = 0.1
    """Assumed share of flipped votes, below one half, for the losses that allow for them: cdpo and
    robust. 0 for none.
    """
    soft_labels: bool = True
    """Train on the probability that aggregation gives. Otherwise on the side of one half on which
    it lies.
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
    """CPO's weight of the preferred response's negative mean log-prob; 0 for none."""
    weights: Literal["equal", "votes", "agreement"] = "equal"
    """Weight of a pair: the same for all, its number of votes, or how far they agree (|2p - 1|).
    Weights are scaled to a mean of 1 over the data.
    """
    balance_thumbs: bool = True
    """KTO: weigh thumbs so that all thumbs up together count as much as all thumbs down."""
    reference: Literal["live", "cached"] = "live"
    """Reference log-probs: computed in every step by switching adapters (live), or once for all
    pairs and kept in the store (cached).
    """
    epochs: Epochs = 1.0
    """Passes over the comparisons; a part of one takes that share of the prompts, at least one."""
    batch_pairs: Count = 32
    """Pairs an optimizer step."""
    optim: OptimConfig = optim(learning_rate=5e-4)
    """Optimizer and schedule."""

    def __post_init__(self) -> None:
        self.optim.require("preference")


@dataclass(config=STRICT)
class EvaluateConfig:
    """The final comparison on evaluation prompts."""

    samples: Count = 4
    """Responses to each prompt from each policy."""
    temperature: NotNegative | None = None
    """Sampling temperature of the answers. 0 takes the likeliest token each time and gives one
    answer a prompt. Default: generation.temperature.
    """
    base: bool = True
    """Whether the base model answers too, so that the comparison shows the effect of SFT."""
    resamples: Draws = 2000
    """Bootstrap resamples for each 95 % interval."""
    judge: Named | None = None
    """A further judge: openai:<model>@<base_url>, local:<model>, reward:<run>, or a Python function
    file.py:function.
    """
    asking: JudgeConfig = field(default_factory=JudgeConfig)
    """How the judge is asked."""
    reward_model: Literal["auto", "always", "never"] = "auto"
    """Whether to train a reward model for judging, where the algorithm does not learn from one
    (algorithms on pairs and thumbs). auto: where there is neither a judge nor a gold scorer, or
    where candidates are put to the vote. A reward model that the run has trained judges in any
    case.
    """


@dataclass(config=STRICT)
class BenchConfig:
    """Benchmarks of the base model, the SFT model and every policy. None run unless tasks or domain
    name some.
    """

    tasks: list[Named] = field(default_factory=list)
    """lm-eval's tasks and groups by name, YAML files, or folders of YAML files. None of them may
    run code.
    """
    domain: list[DataSource] = field(default_factory=list)
    """Files of prompts with references, scored by ROUGE, BLEU, F1 and exact match of greedy
    answers.
    """
    data: list[Named] = field(default_factory=list)
    """TASK=FILE gives a local task other rows."""
    limit: Count | None = None
    """Use the first n questions of each task."""
    batch_size: Count = 8
    """Sequences in one forward pass. Padding can change the last digits of the results."""
    num_fewshot: Whole | None = None
    """Examples before each question, where the task leaves it open; 0 for none."""
    apply_chat_template: bool = False
    """Use the chat template instead of plain text."""
    max_new_tokens: Count = 128
    """Longest answer to a prompt of domain, in tokens."""
