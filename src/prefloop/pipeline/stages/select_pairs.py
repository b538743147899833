"""The choice of pairs to label next: those that the reward model is least sure of
(``labeling/selection.py``).
"""

from __future__ import annotations

from typing import Any

from prefloop.artifacts.store import Artifact
from prefloop.base.console import say
from prefloop.base.jsonl import read_rows
from prefloop.config import LabelConfig
from prefloop.data.sources import write_jsonl
from prefloop.errors import DataError
from prefloop.labeling.pool import candidates_of, unlabelled
from prefloop.labeling.scoring import score_pool
from prefloop.labeling.selection import SCORED, choose, marked
from prefloop.models.reward_model import Reward
from prefloop.pipeline.stage import Stage
from prefloop.records import Comparison, from_dict
from prefloop.runs.work import Work


class Choose(Stage):
    """Candidates, earlier labels and a reward model → ``pairs.jsonl``, pairs without votes, best
    first. Produces ``pairs``.
    """

    name = "choose"
    produces = "pairs"
    inputs = ("candidates", "comparisons", "reward")
    uses = frozenset({"backbone"})

    def __init__(self, config: LabelConfig | None = None) -> None:
        self.config = config or LabelConfig()

    def parts(self) -> dict[str, Any]:
        config = self.config
        return {
            "choose": config.choose,
            "pairs": config.pairs,
            "pairs_per_prompt": config.pairs_per_prompt,
        }

    def build(self, work: Work, inputs: dict[str, Artifact]) -> dict[str, object]:
        backbone, config, seed = work.runtime.backbone, self.config, work.runtime.seed + self.round
        candidates = inputs["candidates"] / "candidates.jsonl"
        done = (
            from_dict(Comparison, row)
            for row in read_rows(inputs["comparisons"] / "comparisons.jsonl")
        )
        left = unlabelled(list(candidates_of(candidates)), done)
        pool = left.pairs
        first_round = config.pairs_per_prompt * sum(1 for _ in read_rows(candidates))
        if not pool:
            raise DataError(
                f"none of the candidates' pairs is left to put to the vote ({left.labeled} are"
                " labeled or equal): raise sample.candidates"
            )
        reward = Reward.load(backbone, inputs["reward"].path)
        try:
            scores = score_pool(reward, pool, backbone.config.max_length)
        finally:
            reward.drop()
        if scores.too_long:
            say(
                f"  {scores.too_long} pairs are left out: their prompt does not fit into the model",
                "yellow",
            )
        pool = [pool[i] for i in scores.positions]
        method = config.choose
        if method == "auto":
            method = "disagreement" if scores.margin_PK.shape[1] > 1 else "margin"
        # At most every second candidate: taking more would be no choice.
        count = config.pairs or min(first_round, -(-len(pool) // 2))
        picked, value_P = choose(
            pool,
            count,
            method,
            margin_PK=scores.margin_PK,
            feature_PH=scores.feature_PH if method in SCORED else None,
            temperature=scores.temperature,
            per_prompt=max(2, config.pairs_per_prompt),
            seed=seed,
        )
        write_jsonl(
            work.folder / "pairs.jsonl",
            [marked(pool[i], method, float(value_P[i])) for i in picked],
        )
        mean, of_pool = float(value_P[picked].mean()), float(value_P.mean())
        say(
            f"  {len(picked)} of {len(pool)} pairs by {method}: mean value {mean:.3g}, of the pool"
            f" {of_pool:.3g}"
        )
        return {
            "pairs": len(picked),
            "pool": len(pool),
            "method": method,
            "value": mean,
            "value_of_pool": of_pool,
        }
