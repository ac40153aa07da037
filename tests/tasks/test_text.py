"""The JSONL reader: what it makes of good files, and the one line it says of bad ones."""

import json

import pytest

from forgetting.config import ColumnMapping, TaskConfig
from forgetting.errors import UsageError
from forgetting.tasks.build import load_task
from forgetting.tasks.task import Example
from forgetting.tasks.text import read_jsonl, separated

GOOD = {"prompt": "Q:", "completion": "yes", "choices": ["yes", "no"]}


def write(folder, *rows, name="train.jsonl"):
    path = folder / name
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return str(path)


def config(path, **options):
    return TaskConfig(name="news", train=path, **options)


def failure(task_config):
    with pytest.raises(UsageError) as error:
        load_task(task_config)
    message = str(error.value)
    assert "\n" not in message
    assert "task 'news'" in message
    return message


@pytest.mark.parametrize(
    ("prompt", "completion", "expected"),
    [
        ("Q:", "yes", " yes"),
        ("Q: ", "yes", "yes"),
        ("Q:\n", "yes", "yes"),
        ("Q:", "\nyes", "\nyes"),
        ("", "yes", "yes"),
    ],
)
def test_separator_belongs_to_the_completion(prompt, completion, expected):
    assert separated(prompt, completion) == expected


def test_rows_become_examples(tmp_path):
    path = write(tmp_path, GOOD, "", {"prompt": "Q2: ", "completion": "b"}, {"prompt": "Q3:", "completion": "\nc"})
    assert read_jsonl(config(path)).train == [
        Example("Q:", " yes", (" yes", " no")),
        Example("Q2: ", "b"),
        Example("Q3:", "\nc"),
    ]


def test_columns_template_and_fixed_choices(tmp_path):
    path = write(tmp_path, {"q": "why", "n": 3, "a": "x", "choices": ["p", "q"]})
    columns = ColumnMapping(prompt="q", completion="a")
    read = read_jsonl(config(path, columns=columns, template="{{{n}}} {q}?", choices=("x", "y")))
    assert read.train == [Example("{3} why?", " x", (" x", " y"))]


def test_integer_labels_become_choices(tmp_path):
    path = write(tmp_path, {"prompt": "Q:", "completion": 1})
    assert read_jsonl(config(path, labels=("bad", "good"))).train == [Example("Q:", " good", (" bad", " good"))]


def test_byte_order_mark_and_windows_line_ends(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_bytes(
        b"\xef\xbb\xbf" + b'{"prompt": "Q:", "completion": "a"}\r\n{"prompt": "R:", "completion": "b"}\r\n'
    )
    assert [item.completion for item in read_jsonl(config(str(path))).train] == [" a", " b"]


BAD_ROWS = {
    "not json": ('{"prompt": "Q:", "completion": }', ["line 2", "not JSON", "column 32"]),
    "cut short": ('{"prompt": "Q:", "comp', ["line 2", "not JSON"]),
    "a list": (["Q:", "yes"], ["line 2", "a list", "object"]),
    "a number": ("17", ["line 2", "a number", "object"]),
    "nan": ('{"prompt": "Q:", "completion": NaN}', ["line 2", "NaN"]),
    "infinity": ('{"prompt": "Q:", "completion": "a", "w": -Infinity}', ["line 2", "-Infinity"]),
    "huge number": ('{"prompt": "Q:", "completion": ' + "9" * 5000 + "}", ["line 2", "digits"]),
    "nested": ("[" * 100_000, ["line 2", "nested too deep"]),
    "no prompt": ({"promt": "Q:", "completion": "a"}, ["line 2", "'prompt'", "did you mean 'promt'?"]),
    "no completion": ({"prompt": "Q:", "answer": "a"}, ["line 2", "'completion'", "known: answer"]),
    "empty prompt": ({"prompt": "  ", "completion": "a"}, ["line 2", "'prompt' is empty"]),
    "empty completion": ({"prompt": "Q:", "completion": ""}, ["line 2", "'completion' is empty"]),
    "null": ({"prompt": "Q:", "completion": None}, ["line 2", "'completion' is null", "not text"]),
    "number": ({"prompt": "Q:", "completion": 3}, ["line 2", "'completion' is a number (3)", "not text"]),
    "list": ({"prompt": ["Q"], "completion": "a"}, ["line 2", "'prompt' is a list", "not text"]),
    "not a choice": ({"prompt": "Q:", "completion": "maybe", "choices": ["yes", "no"]}, ["line 2", "'maybe'", "'yes'"]),
    "choices as text": ({"prompt": "Q:", "completion": "a", "choices": "ab"}, ["line 2", "choices 'ab'", "list"]),
    "choices of numbers": ({"prompt": "Q:", "completion": "a", "choices": ["a", 2]}, ["line 2", "choices", "texts"]),
    "one choice": ({"prompt": "Q:", "completion": "a", "choices": ["a"]}, ["line 2", "choices", "two or more"]),
    "same choices": ({"prompt": "Q:", "completion": "a", "choices": ["a", "a"]}, ["line 2", "different"]),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_bad_rows_are_named_by_file_and_line(tmp_path, case):
    row, expected = BAD_ROWS[case]
    message = failure(config(write(tmp_path, GOOD, row)))
    for part in ("train.jsonl", *expected):
        assert part in message


def test_missing_file_names_the_nearest(tmp_path):
    write(tmp_path, GOOD)
    message = failure(config(str(tmp_path / "trian.jsonl")))
    assert "trian.jsonl" in message and "did you mean 'train.jsonl'?" in message


def test_missing_folder(tmp_path):
    assert "folder does not exist" in failure(config(str(tmp_path / "nowhere" / "train.jsonl")))


def test_folder_instead_of_file(tmp_path):
    assert "is a folder" in failure(config(str(tmp_path)))


@pytest.mark.parametrize("content", [b"", b" \n\n", b"\xef\xbb\xbf"])
def test_empty_file(tmp_path, content):
    (tmp_path / "train.jsonl").write_bytes(content)
    assert "is empty" in failure(config(str(tmp_path / "train.jsonl")))


def test_not_utf8_names_line_and_byte(tmp_path):
    (tmp_path / "train.jsonl").write_bytes(b'{"prompt": "Q:", "completion": "a"}\n{"prompt": "\xe9"}')
    message = failure(config(str(tmp_path / "train.jsonl")))
    assert "line 2" in message and "0xe9" in message and "UTF-8" in message


def test_bad_test_file_is_named_as_such(tmp_path):
    train = write(tmp_path, GOOD, GOOD, GOOD)
    message = failure(config(train, test=write(tmp_path, GOOD, "{", name="held.jsonl")))
    assert "test" in message and "held.jsonl" in message and "line 2" in message


BAD_OPTIONS = {
    "template column": ({"template": "{promt}?"}, ["'promt'", "did you mean 'prompt'?"]),
    "template brace": ({"template": "{prompt"}, ["template '{prompt'", "braces"]),
    "template constant": ({"template": "Answer:"}, ["template 'Answer:'", "{column}"]),
    "template attribute": ({"template": "{prompt.__class__}"}, ["'prompt.__class__'", "plain column name"]),
    "template list": ({"template": "{choices}"}, ["'choices'", "template"]),
    "column": ({"columns": ColumnMapping(prompt="text")}, ["'text'", "prompt"]),
    "choices": ({"choices": ("yes", "yes")}, ["choices ['yes', 'yes']", "different"]),
    "completion not in choices": ({"choices": ("a", "b")}, ["'yes'", "['a', 'b']"]),
    "labels of text": ({"labels": ("a", "b")}, ["'yes'", "label 0 to 1"]),
    "subset": ({"subset": "en"}, ["subset", "'jsonl'", "hub"]),
    "validation is train": ({"validation": "train.jsonl"}, ["validation", "the same as train"]),
    "test is train": ({"test": "./train.jsonl"}, ["test", "the same as train"]),
    "validation is test": ({"validation": "o.jsonl", "test": "../o.jsonl"}, ["validation", "the same as test"]),
    "accuracy without choices": ({"metric": "accuracy", "columns": ColumnMapping(choices="none")}, ["accuracy"]),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_bad_options_name_field_and_value(tmp_path, monkeypatch, case):
    options, expected = BAD_OPTIONS[case]
    folder = tmp_path / "work"
    folder.mkdir()
    write(folder, *[GOOD] * 10)
    monkeypatch.chdir(folder)
    if case == "validation is test":
        options = {**options, "test": str(folder / "o.jsonl")}
    message = failure(config("train.jsonl", **options))
    for part in expected:
        assert part in message


@pytest.mark.parametrize("label", [-1, 2, "1", None, 0.5])
def test_labels_out_of_range(tmp_path, label):
    path = write(tmp_path, {"prompt": "Q:", "completion": label})
    message = failure(config(path, labels=("bad", "good")))
    assert "line 1" in message and repr(label) in message and "0 to 1" in message
    assert ("unlabelled" in message) == (label == -1)
