"""One notion of where rows come from, in the configuration, the commands and an artifact's key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tyro
from pydantic import TypeAdapter

from prefloop.artifacts.references import Answers, answers_of, resolve
from prefloop.base.jsonl import read_rows as stored
from prefloop.base.sealed import file_digest
from prefloop.cli import Check, Command, _main, guarded
from prefloop.config import DataConfig, LabelConfig, RLHFConfig
from prefloop.config.load import load_config, parse
from prefloop.data import hub
from prefloop.data.files import count_rows, read_rows
from prefloop.data.source import Source
from prefloop.data.sources import load_comparisons
from prefloop.errors import ConfigError, DataError
from prefloop.pipeline.stage import content, files_read
from prefloop.pipeline.stages.label import Label
from prefloop.runs.runtime import Runtime

PAIRS = [{"prompt": f"Question {i}?", "chosen": "Yes.", "rejected": "No."} for i in range(6)]


def write(path: Path, rows: list[dict[str, Any]] = PAIRS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def fake_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in the place of the hub, asked through ``datasets`` as the hub is; ``calls`` in it
    holds a line a request.
    """
    home, real = tmp_path / "hub", datasets.load_dataset
    home.mkdir()

    def load_dataset(name: str, config: str | None = None, **options: Any) -> Any:
        with (home / "calls").open("a") as file:
            file.write(f"{name} {config} {options['split']}\n")
        if not (home / name).is_dir():
            raise ConnectionError(f"Couldn't reach '{name}' on the Hub (OfflineModeIsEnabled)")
        assert options.pop("streaming") and "trust_remote_code" not in options
        return real(
            str(home / name), config, streaming=True, cache_dir=str(tmp_path / "cache"), **options
        )

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(hub, "cache_folder", lambda: tmp_path / "copies")
    return home


@pytest.mark.parametrize("name", ["org/name", "org/name:train", "name", "json", "org"])
def test_a_folder_of_the_data_sets_name_is_never_read_for_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("org/name", "name", "json"):
        write(tmp_path / folder / "train.jsonl")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.load_dataset(
        "./name"
    )  # now datasets has a copy under that name, which it would take offline
    for module in ("datasets.config", "huggingface_hub.constants"):
        monkeypatch.setattr(f"{module}.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "cache_folder", lambda: tmp_path / "copies")
    with pytest.raises(
        DataError, match="is not on this machine yet, and the hub cannot be reached"
    ):
        Source.parse(f"hf:{name}").files()
    assert not (tmp_path / "copies").exists() or not list((tmp_path / "copies").rglob("*.jsonl"))


def test_a_text_is_a_path_an_address_or_refused() -> None:
    for text in ("train.jsonl", "a b/c.parquet", "runs/x:train", "data/*.parquet", "C-3:po"):
        assert Source.parse(text).scheme == "" and Source.parse(text).path == Path(text)
    for text in (
        "hf:squad",
        "hf:org/name",
        "hf:org/name:train",
        "hf:org/name@v1.0:test",
        "hf:org/name:train[:100]",
    ):
        source = Source.parse(text)
        assert source.scheme == "hf" and str(source) == text == source.name
        with pytest.raises(DataError, match="is an address, and a local file is needed"):
            _ = source.path
    for text in (
        "hf:",
        "hf:a/b/c",
        "hf:org/name:",
        "hf:../x",
        "hf:org/name:train[:0]",
        "hf:org/name:train[5:]",
    ):
        with pytest.raises(ConfigError, match="is no data set of the hub: give hf:org/name"):
            Source.parse(text)
    for text in ("s3://bucket/x", "https://host/x.jsonl"):
        with pytest.raises(
            ConfigError,
            match=r"no rows can be read from .*:// \(known: hf:, argilla: and local files\)",
        ):
            Source.parse(text)
    with pytest.raises(ConfigError, match="names no data"):
        Source.parse(" ")


def test_names_and_stems_make_ids_and_files_beside_a_source(tmp_path: Path) -> None:
    stems = {write(tmp_path / name): "my train" for name in ("my train.jsonl", "my train.parquet")}
    stems |= {
        Source("hf:org/name@v1:train"): "org-name-v1-train",
        Source(f"{tmp_path}/tr-*.parquet"): "tr",
    }
    assert {source: Source.of(source).stem for source in stems} == stems
    assert (
        Source.of(tmp_path / "x.jsonl.gz").stem == "x"
        and Source.of(tmp_path / "x.jsonl.zst").stem == "x"
    )
    assert Source("hf:org/name").folder == Path() and Source.of(tmp_path / "x").folder == tmp_path
    assert Source("hf:org/name").file_name == "org-name"
    checked = load_comparisons(
        write(tmp_path / "q.csv.jsonl", [*PAIRS, {"prompt": "x"}]), bad_rows="quarantine"
    )
    assert checked.quarantine == tmp_path / "q.csv.quarantine.jsonl"


def test_a_configuration_and_flags_take_sources_and_say_what_they_cannot(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(
        "data: {prompts: 'hf:org/name:train', demonstrations: a.jsonl, reward_tests: [b.csv]}\n"
    )
    config = load_config(tmp_path / "c.yaml")
    assert config.data.prompts == Source(
        "hf:org/name:train"
    ) and config.data.demonstrations == Source("a.jsonl")
    flags = [
        "--config",
        str(tmp_path / "c.yaml"),
        "--data.prompts",
        "p.parquet",
        "--data.reward-tests",
        "hf:x",
        "y.tsv",
    ]
    data = parse(flags, "test", "").data
    assert data.prompts == Source("p.parquet") and data.reward_tests == [
        Source("hf:x"),
        Source("y.tsv"),
    ]
    assert parse(["--data.prompts", "None"], "test", "").data.prompts is None
    written = TypeAdapter(RLHFConfig).dump_python(config, mode="json")["data"]
    assert (written["prompts"], written["reward_tests"]) == ("hf:org/name:train", ["b.csv"])
    for value, message in (
        ("s3://x", "no rows can be read from s3://"),
        ("[1]", "expected the path of a file"),
    ):
        (tmp_path / "c.yaml").write_text(f"data: {{prompts: {value}}}\n")
        with pytest.raises(ConfigError, match=message):
            load_config(tmp_path / "c.yaml")
    assert tyro.cli(Command, args=["check", "hf:a/b"]) == Check(Source("hf:a/b"))  # type: ignore[arg-type]


def test_the_key_is_that_of_the_bytes_and_not_of_the_name(tmp_path: Path) -> None:
    one = write(tmp_path / "one.jsonl")
    assert content(Source.of(one)) == content(one) == file_digest(one)
    other = write(tmp_path / "elsewhere" / "other.jsonl")
    assert Source.of(other).digest() == Source.of(one).digest()
    shards = [
        write(tmp_path / f"shards/train-0000{i}-of-00002.parquet", PAIRS[i::2]) for i in range(2)
    ]
    before = Source.of(tmp_path / "shards").digest()
    (tmp_path / "shards").rename(tmp_path / "renamed")
    assert (
        Source.of(tmp_path / "renamed").digest()
        == before
        != Source.of(shards[0].parent.parent / "renamed" / shards[0].name).digest()
    )
    write(tmp_path / "renamed" / shards[1].name, PAIRS[:1])
    assert Source.of(tmp_path / "renamed").digest() != before
    with pytest.raises(
        DataError, match=r"prompts: file '.*gone.jsonl' does not exist: check the path"
    ):
        content(Source.of(tmp_path / "gone.jsonl"), "prompts")
    (tmp_path / "empty").mkdir()
    assert files_read({"prompts": Source.of(one), "gone": Source.of(tmp_path / "empty")}) == {
        "prompts": "one.jsonl"
    }


def test_a_stage_reads_shards_and_is_reused_until_one_of_them_changes(tmp_path: Path) -> None:
    runtime = Runtime(output=tmp_path / "runs")

    def run(source: Path | str) -> Any:
        stage = Label(LabelConfig(source="file"), DataConfig(comparisons=Source.of(source)))
        stage.preflight()
        return stage.run(runtime)

    for i in range(2):
        write(tmp_path / f"shards/part-0000{i}-of-00002.parquet", PAIRS[3 * i : 3 * i + 3])
    first = run(tmp_path / "shards")
    assert [row["prompt"][0]["content"] for row in stored(first / "comparisons.jsonl")] == [
        row["prompt"] for row in PAIRS
    ]
    (tmp_path / "shards").rename(tmp_path / "moved")
    again = run(f"{tmp_path}/moved/*.parquet")
    assert (again.key, again.status) == (first.key, "reused")
    write(tmp_path / "moved/part-00001-of-00002.parquet", PAIRS[:1])
    changed = run(tmp_path / "moved")
    assert changed.key != first.key and changed.metrics["comparisons"] == 4


def test_a_hub_data_set_is_streamed_once_and_read_from_its_copy(
    fake_hub: Path, tmp_path: Path
) -> None:
    folder = fake_hub / "org/name"
    rows = [{**row, "seen": None if i else 1.5} for i, row in enumerate(PAIRS)]
    write(folder / "data/train-00000-of-00001.parquet", rows)
    source = Source.parse("hf:org/name:train")
    assert not source.exists() and count_rows(source) is None and not (fake_hub / "calls").exists()
    checked = load_comparisons(source)
    assert (
        len(checked.records) == 6
        and checked.records[0].votes[0].annotator == "file:hf:org/name:train"
    )
    assert checked.records[0].id.startswith("org-name-train-")
    assert "seen" in checked.records[0].meta and "seen" not in checked.records[1].meta
    write(folder / "data/train-00000-of-00001.parquet", PAIRS[:1])
    assert [row.value for row in read_rows(source)] == [rows[0], *PAIRS[1:]]
    assert source.exists() and count_rows(source) == 6
    assert (
        source.digest() == file_digest(tmp_path / "copies/org--name/train.jsonl") == content(source)
    )
    assert (fake_hub / "calls").read_text() == "org/name None train\n"
    assert (
        count_rows("hf:org/name") is None
        and [row.value for row in read_rows("hf:org/name")] == PAIRS[:1]
    )


def test_splits_and_the_first_rows_of_a_hub_data_set_are_named(fake_hub: Path) -> None:
    for split in ("train", "test"):
        write(fake_hub / f"org/two/{split}.jsonl")
    with pytest.raises(
        DataError,
        match=(
            r"hf:org/two has the splits (test, train|train, test): name one, such as hf:org/two:t"
        ),
    ):
        list(read_rows("hf:org/two"))
    with pytest.raises(DataError, match=r"hf:org/two:dev cannot be read: .*dev"):
        list(read_rows("hf:org/two:dev"))
    assert (
        len(list(read_rows("hf:org/two:test[:2]"))) == 2
        and len(list(read_rows("hf:org/two:test"))) == 6
    )
    with pytest.raises(DataError, match=r"hf:org/two@v1:test cannot be read: .*v1"):
        list(read_rows("hf:org/two@v1:test"))


def test_without_a_network_a_hub_data_set_says_what_to_do(
    fake_hub: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = (
        r"hf:org/gone is not on this machine yet, and the hub cannot be reached .*unset"
        r" HF_HUB_OFFLINE.*hf download --repo-type dataset org/gone"
    )
    with pytest.raises(DataError, match=said):
        list(read_rows("hf:org/gone"))
    assert not (tmp_path / "copies").exists() or not list((tmp_path / "copies").rglob("*.jsonl"))
    assert (
        guarded(_main, ["check", "hf:org/gone"]) == 2 and "Traceback" not in capsys.readouterr().err
    )
    assert not Path("hf:org").exists()


def test_bytes_of_a_hub_row_are_its_problem_and_survive_the_copy(fake_hub: Path) -> None:
    write(
        fake_hub / "org/pics/train.parquet",
        [{"prompt": "a", "image": b"\x89PNG"}, {"prompt": "b", "image": None}],
    )
    for _ in range(2):
        first, second = read_rows("hf:org/pics:train")
        assert first.problem == "its 'image' is 4 bytes (a picture, a sound?), expected text"
        assert first.value["prompt"] == "a" and (second.value, second.problem) == (
            {"prompt": "b"},
            None,
        )


def test_answers_are_any_source_and_runs_are_not(tmp_path: Path) -> None:
    file, shards = write(tmp_path / "a.jsonl"), write(tmp_path / "s/train.parquet")
    (tmp_path / "run/artifacts").mkdir(parents=True)
    write(tmp_path / "run/groups.parquet")
    for name in (
        str(file),
        str(shards.parent),
        f"{shards.parent}:train",
        f"{tmp_path}/s/*.parquet",
        "hf:org/answers:x",
    ):
        assert resolve(name) == Answers(name, Source(name))
    for name in (
        str(tmp_path / "run"),
        f"{tmp_path}/run:sft",
        f"{tmp_path}/gone.jsonl",
        "s3://x/y",
    ):
        assert answers_of(name) is None
