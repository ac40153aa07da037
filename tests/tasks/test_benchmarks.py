"""SuperNI-style and TRACE-style JSON, made up and real."""

import json

import pytest

from forgetting.config import TaskConfig
from forgetting.errors import UsageError
from forgetting.tasks.build import load_task
from forgetting.tasks.task import Example


def instances(outputs, definition=("Say it.\n",)):
    found = [{"input": f"text {i}\n", "output": output} for i, output in enumerate(outputs)]
    return {"Definition": list(definition) if isinstance(definition, tuple) else definition, "Instances": found}


@pytest.fixture
def superni(tmp_path):
    def load(train, test=None, labels=None, **options):
        for name, value in (("train", train), ("test", test), ("labels", labels)):
            if value is not None:
                (tmp_path / f"{name}.json").write_text(value if isinstance(value, str) else json.dumps(value))
        return load_task(TaskConfig(name="s", format="superni", train=str(tmp_path), **options))

    return load


@pytest.fixture
def trace(tmp_path):
    def load(**splits):
        options = {key: splits.pop(key) for key in ("metric", "choices", "template") if key in splits}
        for name, items in splits.items():
            text = items if isinstance(items, str) else json.dumps([{"prompt": p, "answer": a} for p, a in items])
            (tmp_path / f"{name}.json").write_text(text)
        return load_task(TaskConfig(name="s", format="trace", train=str(tmp_path), **options))

    return load


def completions(split):
    return [item.completion for item in split]


def test_superni_prompt_is_definition_input_output(superni):
    loaded = superni(instances(["a"] * 10), instances([["b", "c"]]))
    assert loaded.test == (Example("Say it.\ntext 0\nOutput:", " b"),)
    assert loaded.metric == "exact_match"
    assert loaded.notes["test_with_several_outputs_first_taken"] == 1


@pytest.mark.parametrize("definition", [(), "", None])
def test_superni_without_a_definition(superni, definition):
    loaded = superni(instances(["a"] * 10, definition), instances(["b"], definition))
    assert loaded.test[0].prompt == "text 0\nOutput:"


def test_labels_give_the_choices_and_the_spelling(superni):
    train = instances(["Good", "bad", "GOOD"] * 4)
    loaded = superni(train, instances(["Bad", "good", "-"]), ["Good", "Bad"])
    assert loaded.metric == "accuracy" and loaded.chance == 0.5
    assert {item.choices for item in (*loaded.train, *loaded.validation, *loaded.test)} == {(" Good", " Bad")}
    assert completions(loaded.test) == [" Bad", " Good"]
    assert loaded.notes["train_labels_matched_ignoring_case"] == 8
    assert loaded.notes["test_labels_matched_ignoring_case"] == 1
    assert loaded.notes["test_not_in_choices_dropped"] == "1 ('-')"


def test_labels_that_do_not_fit_are_replaced_by_the_answers(superni):
    loaded = superni(instances(["yes", "no"] * 10), instances(["no"]), ["False", "True"])
    assert loaded.test[0].choices == (" no", " yes") and loaded.chance == 0.5
    assert loaded.notes["labels_replaced"] == "labels.json says False, True; the answers are no, yes"


def test_empty_outputs_are_dropped_and_counted(superni):
    loaded = superni(instances(["a"] * 10 + [[""], []]), instances(["b"]))
    assert len(loaded.train) + len(loaded.validation) == 10
    assert loaded.notes["train_without_output_dropped"] == 2


def test_dev_json_is_never_read(superni, tmp_path):
    (tmp_path / "dev.json").write_text("not json")
    assert len(superni(instances(["a"] * 10), instances(["b"])).validation) == 1


BAD_SUPERNI = {
    "not json": ('{"Instances": [\n{"input": "a",}]}', ["train.json", "line 2", "not JSON"]),
    "a list": ("[]", ["train.json", "Instances", "a list"]),
    "no instances": ({"Definition": [], "Items": []}, ["Instances", "Definition, Items"]),
    "no items": (instances([]), ["is empty"]),
    "instances an object": ({"Instances": {}}, ["an object, not a list"]),
    "item a text": ({"Instances": ["a"]}, ["item 1", "text, not an object"]),
    "no output": ({"Instances": [{"input": "a", "outputs": ["b"]}]}, ["item 1", "'output'", "'outputs'"]),
    "input a number": ({"Instances": [{"input": 1, "output": "b"}]}, ["item 1", "'input' is a number"]),
    "output a number": ({"Instances": [{"input": "a", "output": 4}]}, ["item 1", "'output' is a number"]),
    "output numbers": ({"Instances": [{"input": "a", "output": [4]}]}, ["item 1", "'output' is a list"]),
    "only empty": (instances(["", ""]), ["no item has an answer"]),
    "deep": ("[" * 100_000, ["nested too deep"]),
    "nan": ('{"Instances": NaN}', ["NaN"]),
}


@pytest.mark.parametrize("case", BAD_SUPERNI)
def test_bad_superni_files(superni, case):
    value, expected = BAD_SUPERNI[case]
    with pytest.raises(UsageError) as error:
        superni(value)
    message = str(error.value)
    assert "\n" not in message and "task 's', train" in message
    for part in expected:
        assert part in message


@pytest.mark.parametrize("labels", ['["a"]', '["a", 1]', '{"a": 1}', "nothing"])
def test_bad_labels_file(superni, labels):
    with pytest.raises(UsageError, match=r"labels.*labels\.json"):
        superni(instances(["a"] * 10), labels=labels)


def test_choices_that_match_no_answer(superni):
    with pytest.raises(UsageError, match=r"train\.json': no answer is among the choices x, y; the first answer is 'a'"):
        superni(instances(["a"] * 10), choices=("x", "y"))


def test_template_is_refused(trace):
    with pytest.raises(UsageError, match="template is given, but format 'trace' does not use it"):
        trace(train=[("p", "a")] * 9, template="{prompt}")


def test_folder_without_train_json(tmp_path):
    with pytest.raises(UsageError, match=r"the folder has no train\.json"):
        load_task(TaskConfig(name="s", format="trace", train=str(tmp_path)))


def test_trace_few_answers_are_the_choices(trace):
    pairs = [(f"p{i}\nStance:", "ABC"[i % 3]) for i in range(60)]
    loaded = trace(train=pairs, eval=[("e:", "A")], test=[("t:", "B"), ("u:", "D")])
    assert loaded.metric == "accuracy" and loaded.chance == pytest.approx(1 / 3)
    assert loaded.validation == (Example("e:", " A", (" A", " B", " C")),)
    assert completions(loaded.test) == [" B"]
    assert loaded.notes["choices_are_the_training_answers"] == "A, B, C"
    assert loaded.notes["test_not_in_choices_dropped"] == "1 ('D')"
    assert len(loaded.train) == 60


def test_trace_many_answers_are_generated(trace):
    loaded = trace(train=[(f"{i} + 1 =", str(i + 1)) for i in range(40)], test=[("1 + 1 =", "2")])
    assert loaded.metric == "exact_match" and loaded.test[0].choices is None


def test_trace_without_test_is_cut_from_train_never_from_eval(trace):
    pairs = [(f"p{i}:", "AB"[i % 2]) for i in range(50)]
    loaded = trace(train=pairs, eval=[("e:", "A"), ("f:", "B")])
    assert [item.prompt for item in loaded.validation] == ["e:", "f:"]
    assert len(loaded.test) == 10 and all(item.prompt.startswith("p") for item in loaded.test)
    assert not {item.prompt for item in loaded.test} & {item.prompt for item in loaded.train}


def test_real_fomc(real_data):
    loaded = load_task(TaskConfig(name="FOMC", format="trace", train=str(real_data / "trace_fomc")))
    assert loaded.metric == "accuracy" and loaded.chance == pytest.approx(1 / 3)
    assert [len(loaded.train), len(loaded.validation), len(loaded.test)] == [5952 - 1190, 1488, 1190]
    assert loaded.test[0].choices == (" dovish", " hawkish", " neutral")
    assert loaded.test[0].prompt.endswith("Stance:")
