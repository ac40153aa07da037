"""Data sets in the hub's format, from local folders and files; the hub itself is out of reach here."""

import json

import pytest

from forgetting.config import ColumnMapping, TaskConfig
from forgetting.errors import UsageError
from forgetting.tasks.build import load_task
from forgetting.tasks.task import Example

COLUMNS = ColumnMapping(prompt="text", completion="label")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    data = tmp_path / "data"
    data.mkdir()
    for split, count in (("train", 30), ("validation", 5), ("test", 8)):
        rows = [{"text": f"{split} {i}:", "label": i % 2, "n": i} for i in range(count)]
        (data / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return data


def config(source, **options):
    return TaskConfig(**{"name": "h", "format": "hub", "train": str(source), "columns": COLUMNS, **options})


def test_folder_with_labels_and_splits(folder):
    loaded = load_task(config(folder, labels=("bad", "good"), validation="validation", test="test"))
    assert [len(loaded.train), len(loaded.validation), len(loaded.test)] == [30, 5, 8]
    assert loaded.test[1] == Example("test 1:", " good", (" bad", " good"))
    assert loaded.metric == "accuracy" and loaded.chance == 0.5


def test_template_and_other_training_split(folder):
    loaded = load_task(config(folder, train_split="test", labels=("a", "b"), template="{n}) {text}"))
    texts = {item.prompt for item in (*loaded.train, *loaded.validation, *loaded.test)}
    assert texts == {f"{i}) test {i}:" for i in range(8)}


def test_saved_data_set_with_its_own_label_names(tmp_path):
    from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

    features = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})
    rows = {"text": [f"t{i}" for i in range(10)], "label": [i % 2 for i in range(10)]}
    saved = Dataset.from_dict(rows, features=features)
    DatasetDict({"train": saved}).save_to_disk(str(tmp_path / "saved"))
    loaded = load_task(config(tmp_path / "saved"))
    assert loaded.test[0].choices == (" no", " yes")
    saved.save_to_disk(str(tmp_path / "single"))
    assert load_task(config(tmp_path / "single")) == loaded


def test_only_as_many_rows_are_read_as_can_be_needed(folder, monkeypatch):
    seen = []
    from forgetting.tasks import hub

    original = hub.rows_to_examples

    def noted(rows, *arguments, **options):
        read = list(rows)
        seen.append(len(read))
        return original(read, *arguments, **options)

    monkeypatch.setattr(hub, "rows_to_examples", noted)
    loaded = load_task(
        config(folder, labels=("a", "b"), validation="validation", test="test", train_size=6, test_size=3)
    )
    assert seen == [6, 5, 3]
    assert [len(loaded.train), len(loaded.validation), len(loaded.test)] == [6, 5, 3]


BAD = {
    "split": ({"test": "tset", "labels": ("a", "b")}, ["test 'tset'", "did you mean 'test'?"]),
    "train split": ({"train_split": "training"}, ["train_split 'training'", "did you mean 'train'?"]),
    "column": ({"columns": ColumnMapping(prompt="txt", completion="label")}, ["'txt'", "did you mean 'text'?"]),
    "labels missing": ({}, ["'label' is a number (0)", "not text"]),
    "too few labels": (
        {"labels": ("a", "b"), "columns": ColumnMapping(prompt="text", completion="n")},
        ["2", "0 to 1"],
    ),
    "test is train": ({"test": "train"}, ["test 'train'", "the same as train"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_options(folder, case):
    options, expected = BAD[case]
    with pytest.raises(UsageError) as error:
        load_task(config(folder, **options))
    message = str(error.value)
    assert "\n" not in message and "task 'h'" in message
    for part in expected:
        assert part in message


def test_unlabelled_split(folder):
    (folder / "test.jsonl").write_text('{"text": "x", "label": -1, "n": 0}')
    with pytest.raises(UsageError, match=r"test of .*row 0: column 'label' is -1, not a label 0 to 1; -1 marks an unl"):
        load_task(config(folder, labels=("a", "b"), test="test"))


@pytest.mark.parametrize(
    ("source", "expected"),
    [("./nowhere", "no such file or folder"), ("data.xlsx", "ends in '.xlsx'"), ("broken.json", "ended before")],
)
def test_bad_sources(folder, tmp_path, monkeypatch, source, expected):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.xlsx").write_text("x")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(UsageError) as error:
        load_task(config(source))
    assert expected in str(error.value) and repr(source) in str(error.value) and "\n" not in str(error.value)


def test_unreachable_hub_is_one_line(monkeypatch):
    def refuse(*args, **kwargs):
        assert kwargs == {"name": "en"}  # no code of the data set's own is ever trusted
        raise ConnectionError("Couldn't reach\nthe Hub")

    monkeypatch.setattr("datasets.load_dataset", refuse)
    monkeypatch.setattr("datasets.load_dataset_builder", refuse)
    with pytest.raises(UsageError) as error:
        load_task(config("owner/name", subset="en"))
    message = str(error.value)
    assert "task 'h', train 'owner/name' (subset 'en')" in message and "Couldn't reach the Hub" in message


def arrow_files(tmp_path):
    return sorted((tmp_path / "cache").rglob("*.arrow"))


def test_splits_are_streamed_once_and_only_those_asked_for(folder, tmp_path, monkeypatch):
    import datasets

    opened = []
    original = datasets.DatasetBuilder.as_streaming_dataset

    def noted(self, split=None, **options):
        opened.append(split)
        return original(self, split=split, **options)

    monkeypatch.setattr(datasets.DatasetBuilder, "as_streaming_dataset", noted)
    options = {"labels": ("bad", "good"), "test": "test"}
    first = load_task(config(folder, **options))
    again = load_task(config(folder, **options))
    assert again == first and opened == ["train", "test"]
    assert [path.stem for path in arrow_files(tmp_path)] == ["test", "train"]
    with open(folder / "train.jsonl", "a") as file:
        file.write(json.dumps({"text": "one more:", "label": 0, "n": 30}))
    assert len(load_task(config(folder, **options)).train) == len(first.train) + 1  # other files, streamed anew


@pytest.mark.parametrize("fault", ["fails", "short"])
def test_a_stream_that_ends_early_leaves_nothing_and_begins_again(folder, tmp_path, monkeypatch, fault):
    from datasets import IterableDataset

    from forgetting.tasks.streamed import StreamedSplits

    with monkeypatch.context() as patch:

        def cut(self, batch_size):
            table = next(iter(original(self, batch_size)))
            yield table.slice(0, 7)
            if fault == "fails":
                raise ConnectionError("the connection\nwas lost")

        original = IterableDataset.iter
        patch.setattr(IterableDataset, "iter", cut)
        patch.setattr(StreamedSplits, "_promised", lambda self, split: 30)
        with pytest.raises(UsageError) as error:
            load_task(config(folder, labels=("a", "b")))
    expected = "ended before it was read whole" if fault == "fails" else "7 rows came of 30"
    assert expected in str(error.value) and "split 'train'" in str(error.value) and "\n" not in str(error.value)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.suffix in (".arrow", ".tmp")]
    assert len(load_task(config(folder, labels=("a", "b"))).train) == 22


def test_a_row_that_cannot_be_read_names_the_split(folder):
    (folder / "train.jsonl").write_text('{"text": "x", "label": 1}\n{"text": "y", "la')
    with pytest.raises(UsageError, match="train .*split 'train': ended before it was read whole: ") as error:
        load_task(config(folder, labels=("a", "b")))
    assert "\n" not in str(error.value)


def test_a_damaged_copy_is_deleted_and_streamed_again(folder, tmp_path):
    options = {"labels": ("a", "b"), "test": "test"}
    right = load_task(config(folder, **options))
    (path,) = [path for path in arrow_files(tmp_path) if path.stem == "train"]
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UsageError, match="was damaged, and is deleted; try again"):
        load_task(config(folder, **options))
    assert load_task(config(folder, **options)) == right


def test_what_was_streamed_serves_when_the_hub_is_not_to_be_asked(folder, tmp_path, monkeypatch):
    from huggingface_hub import constants

    from forgetting.tasks.streamed import versions

    right = load_task(config(folder, labels=("a", "b"), test="test"))
    there = versions("owner/name", None)
    there.mkdir(parents=True)
    arrow_files(tmp_path)[0].parent.rename(there / "version")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert load_task(config("owner/name", labels=("a", "b"), test="test")) == right
