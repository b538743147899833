"""``prefloop label agree`` and ``prefloop label next``: how far annotators agree, and which pairs
to have labeled next.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

from prefloop.config import DataSource
from prefloop.config.ranges import Count, Seed


@dataclasses.dataclass
class Agree:
    """How far annotators agree: Krippendorff's alpha, Cohen's kappa, position bias, votes cast too
    fast, the most disputed items.
    """

    path: tyro.conf.Positional[DataSource]
    """Comparisons or thumbs with votes, in any layout that `prefloop check` reads."""
    layout: str = "auto"
    """Layout of the file; detected when 'auto'."""
    bad_rows: Literal["error", "quarantine"] = "error"
    """What to do with rows that cannot be used: stop, or write them to <file>.quarantine.jsonl and
    go on.
    """
    output: Path | None = None
    """Also write everything as JSON."""
    seed: Seed = 0
    """Seed of the bootstrap."""

    def run(self) -> None:
        from prefloop.base.sealed import write_json
        from prefloop.data.sources import holds, load_comparisons, load_ratings
        from prefloop.errors import DataError
        from prefloop.labeling.show import show
        from prefloop.records import Rating
        from prefloop.stats.annotator_agreement import measure
        from prefloop.stats.votes import collect, collect_thumbs

        if holds(Rating, self.path, self.layout):
            votes = collect_thumbs(
                load_ratings(self.path, layout=self.layout, bad_rows=self.bad_rows).records
            )
        else:
            votes = collect(
                load_comparisons(self.path, layout=self.layout, bad_rows=self.bad_rows).records
            )
        if not len(votes.item_V):
            raise DataError(
                f"'{self.path}': none of {len(votes.ids)} records has a vote: label some first"
            )
        found = measure(votes, seed=self.seed)
        show(found)
        if self.output:
            write_json(self.output, found.to_dict())


@dataclasses.dataclass
class Next:
    """Choose the next pairs to have labeled from a pool without votes, by what a reward ensemble
    disagrees on.
    """

    pool: tyro.conf.Positional[DataSource]
    """Comparisons without votes, or candidates as the sample stage writes them (several responses a
    prompt).
    """
    count: Count
    """Pairs to choose."""
    output: Path
    """File to write them to, ready to be labeled."""
    rewards: Path | None = None
    """Run folder or reward artifact whose reward model scores the pool; random and length do
    without.
    """
    method: Literal["disagreement", "margin", "random", "length"] | None = None
    """disagreement: where the members contradict each other; margin: where they are undecided;
    random; length: largest difference in words. Default: disagreement, or margin where the reward
    model has one member.
    """
    diversity: Literal["hidden", "text", "none"] = "hidden"
    """Keep the chosen pairs apart by the reward model's hidden states or by TF-IDF of their words;
    none takes the highest values as they are.
    """
    per_prompt: Count = 2
    """Most pairs of one prompt."""
    labeled: Annotated[DataSource | None, tyro.conf.arg(aliases=["--labelled"])] = None
    """Comparisons that are labeled already: pairs in it, by id or by content, are left out."""
    layout: str = "auto"
    """Layout of the pool; detected when 'auto'."""
    model: str | None = None
    """Path or name of the reward model's base model, if it has moved since training."""
    pack_tokens: Count = 4096
    """Token budget of one forward pass."""
    seed: Seed = 0
    """Seed of random and of the order among equals."""

    def run(self) -> None:
        from prefloop.base.console import counted, say
        from prefloop.data.sources import write_jsonl
        from prefloop.labeling.pool import read_pool
        from prefloop.labeling.selection import (
            SCORED,
            choose,
            marked,
            require_members,
            text_features,
        )

        read = read_pool(self.pool, self.labeled, self.layout)
        pool, scores, method = read.pairs, None, self.method or "disagreement"
        left_out = (
            f" ({read.voted} with votes and {read.labeled} labeled elsewhere or twice are left out)"
        )
        say(
            f"{counted(len(pool), 'pair')} to choose"
            f" from{left_out if read.voted or read.labeled else ''}"
        )
        if self.rewards is None:
            require_members(method, 0)
        elif method in SCORED:
            from prefloop.labeling.scoring import open_reward, reward_folder, score_pool
            from prefloop.models.reward_model import Saved

            members = Saved.read(reward_folder(self.rewards)).members
            if self.method is None and members == 1:
                method = "margin"
                say(
                    "  by margin: the reward model has one member, and disagreement takes several"
                    " (reward.members: 4)",
                    "yellow",
                )
            require_members(method, members)
            reward = open_reward(self.rewards, self.model, self.pack_tokens)
            scores = score_pool(reward, pool, reward.backbone.config.max_length)
            if scores.too_long:
                out = counted(scores.too_long, "pair is", "pairs are")
                say(f"  {out} left out: the prompt does not fit into the model", "yellow")
            pool = [pool[i] for i in scores.positions]
        feature_PH = None
        if method in SCORED and self.diversity != "none":
            feature_PH = (
                scores.feature_PH if scores and self.diversity == "hidden" else text_features(pool)
            )
        picked, value_P = choose(
            pool,
            self.count,
            method,
            margin_PK=scores.margin_PK if scores else None,
            feature_PH=feature_PH,
            temperature=scores.temperature if scores else 1.0,
            per_prompt=self.per_prompt,
            seed=self.seed,
        )
        write_jsonl(self.output, (marked(pool[i], method, float(value_P[i])) for i in picked))
        if len(picked) < self.count:
            say(
                f"  {len(picked)} of {self.count} asked for: no more with at most {self.per_prompt}"
                " pairs a prompt",
                "yellow",
            )
        worth = f": mean value {value_P[picked].mean():.3g}, of the pool {value_P.mean():.3g}"
        # Values of chance are lots that were drawn: they tell nothing.
        say(
            f"{counted(len(picked), 'pair')} by {method} in"
            f" {self.output}{'' if method == 'random' else worth}"
        )
