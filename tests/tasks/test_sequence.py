"""Named sequences: published orders, local folders, and what is said where something is missing."""

import json

import pytest

from forgetting.config import SequenceConfig, TaskConfig
from forgetting.errors import UsageError
from forgetting.tasks.sequence import FAMILIES, SEQUENCES, _family, load_sequence

LONG = {
    "long-sequence-order4": "mnli cb wic copa qqp boolqa rte imdb yelp amazon sst2 dbpedia agnews multirc yahoo",
    "long-sequence-order5": "multirc boolqa wic mnli cb copa qqp rte imdb sst2 dbpedia agnews yelp amazon yahoo",
    "long-sequence-order6": "yelp amazon mnli cb copa qqp rte imdb sst2 dbpedia agnews yahoo multirc boolqa wic",
    "standard-cl-order1": "dbpedia amazon yahoo agnews",
    "standard-cl-order2": "dbpedia amazon agnews yahoo",
    "standard-cl-order3": "yahoo amazon agnews dbpedia",
    "standard-cl": "dbpedia amazon yahoo agnews",
    "trace": "C-STANCE FOMC MeetingBank Py150 ScienceQA NumGLUE-cm NumGLUE-ds 20Minuten",
}


@pytest.fixture
def long_folder(tmp_path):
    """A folder with three of the fifteen tasks, under the names in use."""
    for name, labels in (("agnews", ["World", "Sports"]), ("SST-2", ["Good", "Bad"]), ("boolq", ["True", "False"])):
        folder = tmp_path / "data" / name
        folder.mkdir(parents=True)
        for split, count in (("train", 40), ("test", 10)):
            items = [{"input": f"{name} {split} {i}", "output": labels[i % 2]} for i in range(count)]
            (folder / f"{split}.json").write_text(json.dumps({"Definition": ["Do."], "Instances": items}))
        (folder / "labels.json").write_text(json.dumps(labels))
    return tmp_path / "data"


def failure(**options):
    with pytest.raises(UsageError) as error:
        load_sequence(SequenceConfig(**options))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", LONG)
def test_published_orders(name):
    orders = {k: v for family in FAMILIES for k, v in _family(family)["orders"].items()}
    assert orders[name] == LONG[name].split()


def test_every_order_names_each_of_its_tasks_once():
    for family in FAMILIES:
        benchmark = _family(family)
        for order in benchmark["orders"].values():
            assert len(set(order)) == len(order) and set(order) <= set(benchmark["tasks"])
    assert set(_family("superni")["orders"]["superni-15"]) == set(_family("superni")["orders"]["superni-15-order2"])


def test_hub_entries_are_valid_task_configurations():
    for name, task in _family("olora")["tasks"].items():
        config = TaskConfig(name=name, format="hub", **task["hub"])
        assert config.template.endswith("\nAnswer:") and ", ".join(config.labels) in config.template


def test_registry_lists_every_name_with_a_line():
    assert {"micro-5", "micro-tuning", "micro-similar", "micro-conflict", "superni-15", *LONG} <= set(SEQUENCES)
    for name in SEQUENCES:
        description = SEQUENCES.get(name).description
        assert description and "\n" not in description
    assert "arXiv 2310.06762" in SEQUENCES.get("trace").description


def test_local_folder_by_any_name(long_folder):
    loaded = load_sequence(
        SequenceConfig(name="long-sequence", data_dir=str(long_folder), tasks=("sst-2", "BoolQ", "AG_News"))
    )
    assert [task.name for task in loaded.tasks] == ["sst2", "boolqa", "agnews"]
    first = loaded.tasks[0]
    assert first.metric == "accuracy" and first.chance == 0.5 and len(first.test) == 10
    assert first.test[0].prompt == "Do.\nSST-2 test 0\nOutput:" and first.test[0].completion == " Good"


def test_sizes_and_seed_apply_to_every_task(long_folder):
    options = {"name": "long-sequence", "data_dir": str(long_folder), "tasks": ("sst2", "agnews")}
    loaded = load_sequence(SequenceConfig(**options, train_size=20, validation_size=3, test_size=5))
    assert {(len(t.train), len(t.validation), len(t.test)) for t in loaded.tasks} == {(20, 3, 5)}
    other = load_sequence(SequenceConfig(**options, train_size=20, validation_size=3, test_size=5, split_seed=1))
    assert other.tasks[0].train != loaded.tasks[0].train


def test_all_missing_tasks_are_named_in_one_line(long_folder):
    message = failure(name="standard-cl-order1", data_dir=str(long_folder))
    assert "lacks dbpedia, amazon, yahoo;" in message and "tasks: [agnews]" in message
    message = failure(name="long-sequence", data_dir=str(long_folder), tasks=("agnews", "yelp"))
    assert "lacks yelp;" in message and "tasks: [boolqa, sst2, agnews]" in message


def test_bad_names():
    assert "'standard-cl-order9'" in failure(name="standard-cl-order9")
    assert "did you mean 'micro-5'?" in failure(name="micro5")
    assert "'agnews'" in failure(name="trace", tasks=("agnews",), data_dir=".")
    assert "did you mean 'agnews'?" in failure(name="standard-cl", tasks=("agnewz",))
    assert "empty list" in failure(name="standard-cl", tasks=())


def test_bad_folders(tmp_path):
    message = failure(name="trace", data_dir=str(tmp_path / "nowhere"))
    assert "data_dir" in message and "is not a folder" in message and "eval.json" in message
    (tmp_path / "train.json").write_text("[]")
    message = failure(name="trace", data_dir=str(tmp_path))
    assert "lacks C-STANCE, FOMC" in message and "folder of one task" in message and "format: trace" in message


@pytest.mark.parametrize("name", ["trace", "superni-15"])
def test_benchmarks_that_the_hub_does_not_have_ask_for_data_dir(name):
    message = failure(name=name)
    assert f"sequence {name!r}" in message and "no data set on the hub; give data_dir" in message


def test_repeated_task(long_folder):
    assert "'sst2' occurs twice" in failure(name="long-sequence", data_dir=str(long_folder), tasks=("sst2", "SST-2"))


def test_own_tasks(tmp_path):
    rows = [{"prompt": f"q{i}", "completion": "a"} for i in range(30)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    tasks = [{"name": n, "train": str(tmp_path / "a.jsonl"), "train_size": s} for n, s in (("x", None), ("y", 4))]
    loaded = load_sequence(SequenceConfig.model_validate({"name": "mine", "tasks": tasks, "train_size": 7}))
    assert [len(task.train) for task in loaded.tasks] == [7, 4]
    again = SequenceConfig.model_validate_json(
        SequenceConfig.model_validate({"name": "mine", "tasks": tasks, "train_size": 7}).model_dump_json()
    )
    assert load_sequence(again) == loaded
    assert "data_dir" in failure(name="mine", tasks=tasks, data_dir=str(tmp_path))


def test_micro_sequence_is_selected_sized_and_seeded():
    options = {"name": "micro-5", "train_size": 20, "validation_size": 6, "test_size": 10}
    loaded = load_sequence(SequenceConfig(**options, tasks=("sorting", "new-facts")))
    assert [task.name for task in loaded.tasks] == ["sorting", "new_facts"]
    assert {(len(t.train), len(t.validation), len(t.test)) for t in loaded.tasks} == {(20, 6, 10)}
    other = load_sequence(SequenceConfig(**options, tasks=("sorting",), split_seed=3))
    assert other.tasks[0].train != loaded.tasks[0].train
    assert "generated" in failure(name="micro-5", data_dir=".")


REAL_LONG = ("agnews", "amazon", "boolqa", "cb", "copa", "mnli", "qqp", "rte", "sst2", "wic")


def test_real_long_sequence(real_data):
    folder = str(real_data / "long_sequence")
    loaded = load_sequence(SequenceConfig(name="long-sequence", data_dir=folder, tasks=REAL_LONG))
    by_name = {task.name: task for task in loaded.tasks}
    assert all(task.metric == "accuracy" for task in loaded.tasks)
    assert by_name["qqp"].test[0].choices == (" no", " yes")
    assert "False, True" in by_name["qqp"].notes["labels_replaced"]
    assert by_name["mnli"].notes["test_not_in_choices_dropped"] == "131 ('-')"
    assert len(by_name["mnli"].test) == 7600 - 131 and by_name["mnli"].chance == pytest.approx(1 / 3)
    assert by_name["copa"].test[0].prompt.startswith("Which sentence is the ")
    assert len(by_name["agnews"].validation) == 200 and len(by_name["agnews"].train) == 3800
    message = failure(name="long-sequence", data_dir=folder)
    assert "lacks imdb, yelp, dbpedia, multirc, yahoo;" in message


def test_real_superni(real_data):
    loaded = load_sequence(SequenceConfig(name="superni-15", data_dir=str(real_data / "superni")))
    assert [task.name for task in loaded.tasks] == _family("superni")["orders"]["superni-15"]
    metrics = {task.name.split("_")[0]: (task.metric, task.chance) for task in loaded.tasks}
    assert metrics["task363"] == ("accuracy", 0.5) and metrics["task875"] == ("accuracy", pytest.approx(1 / 6))
    assert metrics["task1290"] == ("rouge_l", 0.0)
    assert sum(metric == "accuracy" for metric, _ in metrics.values()) == 4
