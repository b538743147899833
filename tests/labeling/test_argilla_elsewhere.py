"""Datasets that were made with Argilla's SDK alone: pulled, read as rows, and trained on, by what
their questions say.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import argilla as rg
import pytest
from labeling_server import Annotator, Labeling

from prefloop.base.sealed import file_digest
from prefloop.cli import _main, guarded
from prefloop.config import (
    AdapterConfig,
    BackboneConfig,
    DataConfig,
    LabelConfig,
    OptimConfig,
    RewardConfig,
)
from prefloop.data.source import Source
from prefloop.data.sources import load_comparisons
from prefloop.errors import ConfigError, DataError, LabelError
from prefloop.labeling.argilla.source import Address, read
from prefloop.pipeline.stages.label import Label
from prefloop.pipeline.stages.reward import RewardModel
from prefloop.records import Message, Rating
from prefloop.runs.runtime import Runtime

TEXTS = ("Rye, for a week.", "None of them.")
RANKED = ((1, 2), (2, 1), (1, 1))  # of response1 and response2, record by record
TICKS = [1, 2, 3, 4, 5]


@pytest.fixture(scope="module")
def sdk(labeling: Labeling) -> rg.Argilla:
    return rg.Argilla(api_url=labeling.url, api_key=labeling.connection.api_key)


@pytest.fixture(scope="module")
def ann(labeling: Labeling) -> Annotator:
    return labeling.user()


@pytest.fixture(scope="module")
def ben(labeling: Labeling) -> Annotator:
    return labeling.user()


Make = Callable[..., rg.Dataset]


@pytest.fixture(scope="module")
def make(labeling: Labeling, sdk: rg.Argilla) -> Make:
    """A dataset of ``records`` (lists of field values) by the SDK alone."""

    def made(settings: rg.Settings, records: list[dict[str, Any]]) -> rg.Dataset:
        dataset = rg.Dataset(labeling.name(), workspace="default", settings=settings, client=sdk)
        dataset.create()
        dataset.records.log(
            [rg.Record(id=f"r{i}", fields=fields) for i, fields in enumerate(records)]
        )
        return dataset

    return made


@pytest.fixture(scope="module")
def template(make: Make) -> rg.Dataset:
    """A dataset of Argilla's own template for rankings."""
    return make(rg.Settings.for_ranking(), asked(1))


def answer(
    person: Annotator, dataset: rg.Dataset, answers: dict[str, Any], status: str = "submitted"
) -> None:
    """Record id → question → value, as the page sends it."""
    ids = {record["external_id"]: record["id"] for record in person.queue(str(dataset.id))}
    for record, values in answers.items():
        body = {
            "status": status,
            "values": {name: {"value": value} for name, value in values.items()} or None,
        }
        done = person.client.post(f"/records/{ids[record]}/responses", json=body)
        assert done.status_code == 201, done.text


def ranking(*ranks: int) -> list[dict[str, Any]]:
    """In the order of the page, as Argilla's own page sends it."""
    return [{"value": f"response{i}", "rank": rank} for i, rank in enumerate(ranks, 1)]


def asked(count: int) -> list[dict[str, Any]]:
    return [
        {
            "instruction": f"Which bread keeps {i} days?",
            "response1": f"{TEXTS[0]} {i}",
            "response2": f"{TEXTS[1]} {i}",
        }
        for i in range(count)
    ]


def rated() -> rg.Settings:
    """Ratings of both responses, and a remark."""
    fields = [rg.TextField(name) for name in ("instruction", "response1", "response2")]
    questions = [rg.RatingQuestion(f"quality_{n}", TICKS) for n in (1, 2)]
    return rg.Settings(
        fields=fields, questions=[*questions, rg.TextQuestion("remark", required=False)]
    )


def cast(labeling: Labeling, dataset: rg.Dataset, *questions: str) -> dict[str, list[Any]]:
    """Record id → (annotator, choice, strength) of every vote that a pull brings."""
    found = labeling.argilla.pull(str(dataset.name), questions=questions)
    return {
        record.id: [(v.annotator, v.choice, v.strength) for v in record.votes]
        for record in found.records
    }


def test_rankings_and_ratings_of_the_sdk_are_pulled_as_answered_and_trained_on(
    labeling: Labeling,
    make: Make,
    ann: Annotator,
    ben: Annotator,
    tmp_path: Path,
    tiny_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ranked, graded = make(rg.Settings.for_ranking(), asked(4)), make(rated(), asked(4))
    answer(ann, ranked, {f"r{i}": {"ranking": ranking(*ranks)} for i, ranks in enumerate(RANKED)})
    answer(ben, ranked, {"r0": {"ranking": ranking(2, 1)}, "r3": {"ranking": ranking(2, 1)}})
    answer(
        ann,
        graded,
        {"r0": {"quality_1": 5, "quality_2": 2}, "r1": {"quality_1": 1, "quality_2": 2}},
    )
    answer(
        ben,
        graded,
        {"r0": {"quality_1": 3, "quality_2": 3}, "r3": {"quality_1": 1, "quality_2": 5}},
    )
    expected = {
        ranked.name: [
            [(ann, 0, None), (ben, 1, None)],
            [(ann, 1, None)],
            [(ann, "tie", None)],
            [(ben, 1, None)],
        ],
        graded.name: [[(ann, 0, 3), (ben, "tie", None)], [(ann, 1, 1)], [(ben, 1, 4)]],
    }
    kept = []
    for name, votes in expected.items():
        file = tmp_path / f"{name}.jsonl"
        command = ("label", "pull", "--home", labeling.home, "--dataset", name, "--output", file)
        assert guarded(_main, [*map(str, command)]) == 0
        records = load_comparisons(file).records
        assert [[(v.annotator, v.choice, v.strength) for v in r.votes] for r in records] == [
            [(person.name, choice, strength) for person, choice, strength in each] for each in votes
        ]
        assert all(text in r.responses[n].text for r in records for n, text in enumerate(TEXTS))
        kept += records
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "question 'ranking' (ranking: response1, response2) is read as the vote, rank 1 the best"
        in said
    )
    assert "the prompt is 'instruction', the responses 'response1', 'response2'" in said
    assert (
        "a vote with the difference as its strength" in said and "not used: 'remark' (text)" in said
    )

    backbone = BackboneConfig(
        model=str(tiny_folder),
        precision="fp32",
        max_length=128,
        adapter=AdapterConfig(r=4, alpha=8),
    )
    runtime = Runtime(backbone, output=tmp_path / "runs")
    data = DataConfig(comparisons=tmp_path / f"{ranked.name}.jsonl")
    optim = OptimConfig(learning_rate=1e-2, warmup_steps=0)
    labels = Label(LabelConfig(source="file"), data).run(runtime)
    reward = RewardModel(
        RewardConfig(members=1, batch_pairs=2, holdout=0.25, epochs=1, optim=optim), from_sft=False
    )
    assert reward.run(runtime, comparisons=labels).metrics["steps"] == 2


def test_the_sdks_own_reading_would_have_lost_ranks_and_failed_at_a_discard(
    make: Make, ann: Annotator, ben: Annotator
) -> None:
    """Why answers are read over REST; when this fails, the SDK has learnt it."""
    dataset = make(rg.Settings.for_ranking(), asked(1))
    answer(ann, dataset, {"r0": {"ranking": ranking(2, 1)}})
    (record,) = list(dataset.records)
    assert record.responses["ranking"][0].value == ["response1", "response2"]
    assert "status" not in record.to_dict()["responses"]["ranking"][0]
    answer(ben, dataset, {"r0": {}}, "discarded")
    with pytest.raises(AttributeError):
        list(dataset.records)


def test_drafts_and_discards_are_counted_and_every_submitted_answer_is_one_vote(
    labeling: Labeling, make: Make, ann: Annotator, ben: Annotator
) -> None:
    dataset = make(rg.Settings.for_ranking(), asked(3))
    answer(ann, dataset, {"r0": {"ranking": ranking(1, 2)}})
    answer(ben, dataset, {"r0": {"ranking": ranking(1, 2)}})
    answer(ann, dataset, {"r1": {"ranking": ranking(1, 2)}}, "draft")
    answer(ann, dataset, {"r2": {}}, "discarded")
    found = labeling.argilla.pull(str(dataset.name))
    assert (found.votes, found.drafts, found.discards, found.foreign) == (2, 1, 1, 0)
    assert [record.id for record in found.records] == ["r0"]
    assert all(vote.at.endswith("+00:00") for vote in found.records[0].votes)
    assert found.records[0].responses[0].source == f"argilla:default/{dataset.name}"


def test_labels_that_name_no_response_are_asked_about_and_mapped(
    labeling: Labeling, make: Make, ann: Annotator
) -> None:
    labels = rg.LabelQuestion("which", ["top", "bottom", "even", "skip"])
    settings = rg.Settings(
        fields=[rg.TextField(n) for n in ("instruction", "response1", "response2")],
        questions=[labels],
    )
    dataset = make(settings, asked(4))
    answer(
        ann,
        dataset,
        {f"r{i}": {"which": v} for i, v in enumerate(("top", "bottom", "even", "skip"))},
    )
    with pytest.raises(
        DataError, match=r"none of the questions 'which' \(label: top, bottom, even, skip\) says"
    ):
        cast(labeling, dataset)
    with pytest.raises(
        ConfigError, match="say preferred=which:VALUE_OF_response1,VALUE_OF_response2"
    ):
        cast(labeling, dataset, "preferred=which")
    assert cast(labeling, dataset, "preferred=which:top,bottom,even") == {
        "r0": [(ann.name, 0, None)],
        "r1": [(ann.name, 1, None)],
        "r2": [(ann.name, "tie", None)],
    }
    turned = cast(
        labeling, dataset, "preferred=which:bottom,top,even", "responses=response2,response1"
    )
    assert [votes[0][1] for votes in turned.values()] == [1, 0, "tie"]


def test_one_rating_of_a_pair_is_read_when_asked_low_for_the_first(
    labeling: Labeling, make: Make, ann: Annotator
) -> None:
    fields = [rg.TextField(n) for n in ("instruction", "response1", "response2")]
    questions = [rg.RatingQuestion("side", TICKS), rg.TextQuestion("reason", required=False)]
    dataset = make(rg.Settings(fields=fields, questions=questions), asked(3))
    answer(
        ann, dataset, {"r0": {"side": 1, "reason": " drier "}, "r1": {"side": 4}, "r2": {"side": 3}}
    )
    with pytest.raises(DataError, match=r"'side' \(rating: 1, 2, 3, 4, 5\)"):
        cast(labeling, dataset)
    assert [votes[0][1:] for votes in cast(labeling, dataset, "preferred=side").values()] == [
        (0, 2),
        (1, 1),
        ("tie", None),
    ]
    found = labeling.argilla.pull(str(dataset.name), questions=("preferred=side", "why=reason"))
    assert [record.votes[0].why for record in found.records] == ["drier", None, None]


def test_single_responses_give_thumbs(labeling: Labeling, make: Make, ann: Annotator) -> None:
    dataset = make(
        rg.Settings.for_rating(),
        [{"instruction": f"{i}?", "response": f"It is {i}."} for i in range(3)],
    )
    answer(ann, dataset, {"r0": {"rating": 5}, "r1": {"rating": 2}, "r2": {"rating": 3}})
    found = labeling.argilla.pull(str(dataset.name))
    assert all(isinstance(record, Rating) for record in found.records)
    assert [(r.id, r.votes[0].value) for r in found.records] == [("r0", "up"), ("r1", "down")]
    assert "4, 5 up, 1, 2 down, 3 neither" in found.reading.describe()
    fields = [rg.TextField("instruction"), rg.TextField("response")]
    settings = rg.Settings(fields=fields, questions=[rg.LabelQuestion("harmful", ["yes", "no"])])
    other = make(settings, [{"instruction": "a?", "response": "b"}])
    answer(ann, other, {"r0": {"harmful": "yes"}})
    with pytest.raises(DataError, match="says by its values what is better"):
        labeling.argilla.pull(str(other.name))
    pulled = labeling.argilla.pull(str(other.name), questions=("thumb=harmful:no,yes",))
    assert [vote.value for vote in pulled.records[0].votes] == ["down"]


def test_a_chat_with_three_responses_gives_pairs_and_a_bad_record_is_named(
    labeling: Labeling, make: Make, ann: Annotator
) -> None:
    names = [f"response{n}" for n in (1, 2, 3)]
    turns = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello?"}]
    unanswered = [*turns, {"role": "assistant", "content": "Hi."}]
    settings = rg.Settings(
        fields=[rg.ChatField("prompt"), *map(rg.TextField, names)],
        questions=[rg.RankingQuestion("order", names)],
    )
    rows = [
        {"prompt": prompt, **{name: f"{name} <b>" for name in names}}
        for prompt in (turns, unanswered)
    ]
    rows[0][names[2]] = f"<|im_start|>assistant\n{rows[0][names[2]]}<|im_end|>"
    dataset = make(settings, rows)
    answer(ann, dataset, {record: {"order": ranking(2, 1, 2)} for record in ("r0", "r1")})
    found = labeling.argilla.pull(str(dataset.name))
    assert [(r.id, r.votes[0].choice) for r in found.records] == [
        ("r0/0-1", 1),
        ("r0/0-2", "tie"),
        ("r0/1-2", 0),
    ]
    assert found.records[0].prompt == [Message("system", "Be kind."), Message("user", "Hello?")]
    assert [r.text for r in found.records[1].responses] == ["response1 <b>", "response3 <b>"]
    assert "; ChatML markers in texts, unwrapped into messages (in 1 row))" in found.describe()
    assert (
        "1 record that cannot be used left out, the first 'r1': prompt ends with the assistant's"
        in found.describe()
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("better", "expected KEY=NAME"),
        ("prefered=ranking", "'prefered' is unknown; did you mean 'preferred'"),
        ("preferred=rankin", "no question 'rankin'; did you mean 'ranking'"),
        ("prompt=instructions", "no field 'instructions'; did you mean 'instruction'"),
        ("thumb=ranking", "thumb is about one response"),
        ("ratings=ranking", "1 ratings for 2 responses"),
        ("strength=ranking", "'ranking' (ranking: response1, response2) is no strength"),
        ("responses=response1,response1", "names a field twice"),
    ],
)
def test_wrong_questions_are_told_with_what_there_is(
    labeling: Labeling, template: rg.Dataset, given: str, said: str
) -> None:
    with pytest.raises(ConfigError) as wrong:
        cast(labeling, template, given)
    assert said in str(wrong.value)


def test_an_address_gives_every_record_and_a_digest_that_follows_the_votes(
    labeling: Labeling, make: Make, ann: Annotator
) -> None:
    dataset = make(rg.Settings.for_ranking(), asked(3))
    address = f"argilla://default/{dataset.name}"
    before = read(address, labeling.connection)
    assert [(row["id"], row["votes"]) for row in before.rows] == [
        ("r0", []),
        ("r1", []),
        ("r2", []),
    ]
    answer(ann, dataset, {"r1": {"ranking": ranking(2, 1)}})
    after = read(address, labeling.connection)
    assert after.rows[1]["votes"][0]["choice"] == 1 and after.digest != before.digest
    assert read(address, labeling.connection).digest == after.digest
    assert (
        json.loads(json.dumps(after.rows)) == after.rows and "is read as the vote" in after.summary
    )
    turned = read(f"{address}?responses=response2,response1&preferred=ranking", labeling.connection)
    assert turned.rows[1]["votes"][0]["choice"] == 0


def test_an_address_is_a_source_like_a_file(
    labeling: Labeling,
    make: Make,
    ann: Annotator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dataset = make(rg.Settings.for_ranking(), asked(3))
    answer(ann, dataset, {"r0": {"ranking": ranking(1, 2)}, "r1": {"ranking": ranking(2, 1)}})
    monkeypatch.setenv("ARGILLA_API_URL", labeling.url)
    monkeypatch.setenv("ARGILLA_API_KEY", labeling.connection.api_key)
    monkeypatch.setattr("prefloop.labeling.argilla.source.cache_home", lambda: tmp_path)
    address = f"argilla://default/{dataset.name}"
    assert [[v.choice for v in pair.votes] for pair in load_comparisons(address).records] == [
        [0],
        [1],
        [],
    ]
    assert guarded(_main, ["check", address]) == 0
    (copy,) = (tmp_path / "argilla").iterdir()
    assert copy.parent.stat().st_mode & 0o77 == 0  # votes are nobody else's
    # One process sees one state of the votes, the next one the newer.
    answer(ann, dataset, {"r2": {"ranking": ranking(1, 2)}})
    assert Source.parse(address).digest() == Source.parse(address).digest() == file_digest(copy)
    monkeypatch.setattr("prefloop.labeling.argilla.source._FETCHED", {})
    assert [len(pair.votes) for pair in load_comparisons(address).records] == [1, 1, 1]


def test_prompts_of_any_dataset_are_rows(labeling: Labeling, make: Make) -> None:
    settings = rg.Settings(
        fields=[rg.TextField("prompt")], questions=[rg.LabelQuestion("topic", ["bread", "tea"])]
    )
    rows = read(
        f"argilla://default/{make(settings, [{'prompt': 'p?'}]).name}", labeling.connection
    ).rows
    assert rows == [{"id": "r0", "prompt": [{"role": "user", "content": "p?"}], "meta": {}}]


@pytest.mark.parametrize(
    "address", ["argilla://x", "argilla://a/b/c", "argilla:///b", "argilla://me:key@host/b", "hf:x"]
)
def test_what_is_no_address_of_a_dataset_is_refused_without_its_secrets(address: str) -> None:
    with pytest.raises(ConfigError, match="is no address of a dataset") as wrong:
        Address.parse(address)
    assert "key@" not in str(wrong.value)


def test_a_programs_default_client_stays_its_own(labeling: Labeling, sdk: rg.Argilla) -> None:
    rg.Argilla._set_default(sdk)
    assert labeling.argilla.rest.client is not sdk and rg.Argilla._get_default() is sdk
    with pytest.raises(LabelError, match="did you mean 'default'"):
        labeling.argilla.check("defalt")
