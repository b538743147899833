"""``prefloop reward eval``: how good a run's reward model is on files that it has not seen."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from prefloop.base.sealed import DIGEST, write_sealed
from prefloop.config import DataSource
from prefloop.config.ranges import Count

if TYPE_CHECKING:
    from prefloop.data.overlap import Overlap
    from prefloop.data.source import Source


@dataclasses.dataclass
class RewardCommand:
    """Measure a reward model's accuracy, calibration, length bias and agreement with people on
    files of labelled pairs, human judgments or best-of-n rows.
    """

    place: tyro.conf.Positional[Path] = dataclasses.field(kw_only=True)
    """Run folder or reward artifact."""
    file: Annotated[tyro.conf.Positional[DataSource], tyro.conf.arg(metavar="FILE")] = (
        dataclasses.field(kw_only=True)
    )
    """File in any layout that `prefloop check` reads as comparisons or best_of."""
    more: Annotated[
        tyro.conf.Positional[tuple[DataSource, ...]], tyro.conf.arg(metavar="[FILE ...]")
    ] = ()
    """Further files."""
    by: str | None = None
    """Field that names the subsets; subset, category or source by default."""
    layout: str = "auto"
    """Layout of the files; detected when 'auto'."""
    limit: Count | None = None
    """Use only the first LIMIT rows of each file."""
    quarantine: Path | None = None
    """Folder for bad rows and prompts that do not fit; without one they are an error."""
    drop_overlap: bool = False
    """Leave out prompts that are in the training set. By default they are only counted."""
    model: str | None = None
    """Path or name of the reward model's base model, if it has moved since training."""
    pack_tokens: Count = 4096
    """Token budget of one forward pass."""
    output: Path | None = None
    """File for the result; by default reward-eval.json of the run folder, or of the current folder
    for an artifact.
    """

    def run(self) -> None:
        import tempfile

        from prefloop.artifacts.references import key_of
        from prefloop.base.console import console, say
        from prefloop.evaluation.reward_files import FileReading, evaluate_file
        from prefloop.evaluation.reward_table import table
        from prefloop.labeling.scoring import open_reward, reward_folder

        names = names_of([self.file, *self.more])
        if self.quarantine:
            self.quarantine.mkdir(parents=True, exist_ok=True)
        overlaps = {
            name: self._overlap(path) for name, path in names.items()
        }  # before the model is loaded
        key = key_of(reward_folder(self.place))
        reward = open_reward(self.place, self.model, self.pack_tokens)
        results: dict[str, Any] = {}
        with tempfile.TemporaryDirectory(prefix="prefloop-") as scratch:
            for number, (name, path) in enumerate(names.items()):
                same = overlaps[name]
                left_out: set[str] = same.ids if same and self.drop_overlap else set()
                reading = FileReading(
                    Path(scratch) / str(number),
                    self.quarantine or Path(scratch),
                    self.layout,
                    "quarantine" if self.quarantine else "error",
                    self.limit,
                    self.by,
                    frozenset(left_out),
                )
                results[name] = {"reward": key, **evaluate_file(reward, path, reading)}
                results[name]["overlap"] = (
                    {**same.to_dict(), "left_out": bool(left_out)} if same else None
                )
        console.print(table(results))
        for name, same in overlaps.items():
            if same is None:
                say(
                    f"{name}: the training comparisons are gone, so overlap with them is unknown",
                    "yellow",
                )
            else:
                dropped = "; left out" if same.ids and self.drop_overlap else ""
                say(f"{name}: {same.describe()}{dropped}", "yellow" if same.ids else "dim")
        # Nothing is written into an artifact, whose manifest lists its files.
        place = (
            self.output
            or (self.place if (self.place / "artifacts").is_dir() else Path()) / "reward-eval.json"
        )
        write_sealed(place, results)
        say(
            "95 % intervals by prompt; ECE before and after the fitted temperature. Written to"
            f" {place}",
            "dim",
        )

    def _overlap(self, path: Source) -> Overlap | None:
        from prefloop.data.overlap import overlap
        from prefloop.data.sources import holds, load_best_of, load_comparisons
        from prefloop.evaluation.reward_files import training_prompts
        from prefloop.records import BestOf

        training = training_prompts(self.place)
        if training is None:
            return None
        load: Any = load_best_of if holds(BestOf, path, self.layout) else load_comparisons
        bad_rows = "quarantine" if self.quarantine else "error"
        read = load(
            path,
            layout=self.layout,
            bad_rows=bad_rows,
            quarantine_dir=self.quarantine,
            limit=self.limit,
        )
        return overlap(training, read.records)


def names_of(files: Sequence[Source]) -> dict[str, Source]:
    """The files by their names in the result: the file's name, or its path where two files share a
    name or the name is the digest's key.
    """
    short = [DIGEST, *(path.name for path in files)]
    named = {path.name if short.count(path.name) == 1 else str(path): path for path in files}
    return {f"./{name}" if name == DIGEST else name: path for name, path in named.items()}
