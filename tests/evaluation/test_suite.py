"""Suites against lm-eval's own evaluation with HFLM, offline, on files made here and on the embedded model."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, AutoTokenizer

import forgetting.micro
from forgetting.errors import UsageError
from forgetting.evaluation import catalogue
from forgetting.evaluation.suite import SUITES, Suite, _Capability, load_suite
from tests.evaluation.test_lm import MODELS, TOKENIZER

MODEL = MODELS["llama"]

TASKS = {
    "choice": """
output_type: multiple_choice
doc_to_text: "{{prompt}}"
doc_to_choice: "{{options}}"
doc_to_target: label
metric_list:
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
  - {metric: acc, aggregation: mean, higher_is_better: true}
metadata: {version: 2.5}
""",
    "declared": """
output_type: multiple_choice
doc_to_text: "{{prompt}}"
doc_to_choice: "{{options}}"
doc_to_target: label
fewshot_split: test
num_fewshot: 2
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
metadata: {version: 1.0, chance: 0.4}
""",
    "blank": """
output_type: multiple_choice
doc_to_text: label
doc_to_choice: "{{options}}"
doc_to_target: "{{prompt}}"
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
metadata: {version: 1.0}
""",
    "f1": """
output_type: multiple_choice
doc_to_text: "{{prompt}}"
doc_to_choice: ["w4", "w5"]
doc_to_target: "{{label % 2}}"
metric_list:
  - {metric: mcc, aggregation: matthews_corrcoef, higher_is_better: true}
metadata: {version: 1.0}
""",
    "write": """
output_type: generate_until
doc_to_text: "{{prompt}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["w9"], max_gen_toks: 6}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
filter_list:
  - name: first-word
    filter: [{function: regex, regex_pattern: "(w[0-9]+)"}, {function: take_first}]
  - name: all
    filter: [{function: take_first}]
metadata: {version: 3}
""",
    "last_word": """
output_type: loglikelihood
doc_to_text: "{{prompt}}"
doc_to_target: " {{answer}}"
metric_list:
  - {metric: perplexity, aggregation: perplexity, higher_is_better: false}
metadata: {version: 1.0}
""",
    "rolling": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{prompt}} {{answer}}"
metric_list:
  - {metric: word_perplexity, aggregation: weighted_perplexity, higher_is_better: false}
metadata: {version: 1.0}
""",
}


def documents(n: int = 12) -> list[dict[str, Any]]:
    prompts = [f"w{2 + k} w{3 + k * 7 % 20}" for k in range(n)]
    greedy = MODEL(torch.tensor([TOKENIZER(prompt)["input_ids"] for prompt in prompts])).logits[:, -1].argmax(-1)
    return [
        {
            "prompt": prompts[k],
            "options": [f"w{4 + k}", f"w{5 + k} w{6 + k}", "w7 w8 w9"][: 2 + k % 2],
            "label": k % 2,
            "answer": f"w{int(greedy[k]) if k % 3 else 31}",
        }
        for k in range(n)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps(document) + "\n" for document in documents()))
    (folder / "load.py").write_text(
        "import datasets, json, pathlib\n"
        "def load(**_):\n"
        "    text = (pathlib.Path(__file__).parent / 'data.jsonl').read_text()\n"
        "    return {'test': datasets.Dataset.from_list([json.loads(line) for line in text.splitlines()])}\n"
    )
    for name, body in TASKS.items():
        head = f"task: {name}\ncustom_dataset: !function load.load\ntest_split: test"
        (folder / f"{name}.yaml").write_text(head + body)
    return folder


@pytest.fixture(scope="module")
def suite(folder: Path) -> Suite:
    return load_suite([str(folder)], trust_remote_code=True)


def lm_eval_results(model: Any, tokenizer: Any, names: list[str], path: Path, limit: int | None = None) -> Any:
    lm = HFLM(model, tokenizer=tokenizer, batch_size=8, device="cpu")
    manager = TaskManager(include_path=str(path), include_defaults=False)
    return simple_evaluate(lm, tasks=names, task_manager=manager, limit=limit, log_samples=True, bootstrap_iters=0)


def test_every_kind_of_task_scores_as_in_lm_eval(suite: Suite, folder: Path) -> None:
    results = lm_eval_results(MODEL, TOKENIZER, list(TASKS), folder)
    scores = suite.evaluate(MODEL, TOKENIZER, batch_size=5)
    assert list(scores) == sorted(TASKS) == [info.name for info in suite.capabilities()]
    for info in suite.capabilities():
        key = next(key for key in results["results"][info.name] if key.startswith(f"{info.metric},"))
        assert scores[info.name].value == pytest.approx(results["results"][info.name][key], rel=1e-4), info.name
        assert len(scores[info.name].items) == info.n == 12
        assert info.higher_is_better == results["higher_is_better"][info.name][info.metric]
        assert info.version == str(results["versions"][info.name])
    for name in ("choice", "declared", "blank", "write"):
        filtered = "first-word" if name == "write" else "none"
        samples = [s for s in results["samples"][name] if s["filter"] == filtered]
        metric = "exact_match" if name == "write" else "acc"
        assert scores[name].items == [float(sample[metric]) for sample in samples], name
        assert 0 < sum(scores[name].items) < 12, name


def test_capabilities_state_metric_chance_and_direction(suite: Suite) -> None:
    infos = {info.name: info for info in suite.capabilities()}
    assert infos["choice"].metric == "acc"
    assert infos["choice"].chance == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert infos["declared"].chance == pytest.approx(0.4)
    assert infos["write"].chance == 0 and infos["write"].metric == "exact_match"
    assert not infos["last_word"].higher_is_better and not infos["rolling"].higher_is_better


def test_items_of_perplexities(suite: Suite) -> None:
    scores = suite.evaluate(MODEL, TOKENIZER)
    words = [len(f"{d['prompt']} {d['answer']}".split()) for d in documents()]
    nats = sum(item * n for item, n in zip(scores["rolling"].items, words, strict=True))
    assert scores["rolling"].value == pytest.approx(2.718281828459045 ** (nats / sum(words)))


def test_scoring_again_another_model_and_other_batches_change_nothing(suite: Suite) -> None:
    first = suite.evaluate(MODEL, TOKENIZER, batch_size=4)
    prepared = dict(suite._prepared[TOKENIZER])
    assert suite.evaluate(MODELS["gpt2"], TOKENIZER, batch_size=4) != first
    assert suite.evaluate(MODEL, TOKENIZER, batch_size=4) == first
    assert suite._prepared[TOKENIZER] == prepared  # nothing was tokenised again
    other = suite.evaluate(MODEL, TOKENIZER, batch_size=64)
    assert {name: score.value for name, score in other.items()} == pytest.approx({n: s.value for n, s in first.items()})


def test_limit_keeps_the_first_items(folder: Path, suite: Suite) -> None:
    few = load_suite([str(folder)], trust_remote_code=True, limit=5)
    assert {info.n for info in few.capabilities()} == {5}
    whole = suite.evaluate(MODEL, TOKENIZER)["choice"].items
    assert few.evaluate(MODEL, TOKENIZER)["choice"].items == whole[:5]


def test_offset_passes_over_the_first_items(folder: Path, suite: Suite) -> None:
    whole = suite.evaluate(MODEL, TOKENIZER)["choice"].items
    assert (
        load_suite([str(folder)], trust_remote_code=True, limit=3, offset=2).evaluate(MODEL, TOKENIZER)["choice"].items
        == whole[2:5]
    )
    assert (
        load_suite([str(folder)], trust_remote_code=True, offset=2).evaluate(MODEL, TOKENIZER)["choice"].items
        == whole[2:]
    )
    with pytest.raises(UsageError, match=r"evaluation.offset 10000: task .* has \d+ items"):
        load_suite([str(folder)], trust_remote_code=True, offset=10_000)


def test_nothing_is_printed_or_logged(
    folder: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="lm_eval")
    load_suite([str(folder)], trust_remote_code=True).evaluate(MODEL, TOKENIZER)
    printed = capfd.readouterr()
    assert printed.out == printed.err == ""
    assert not [record for record in caplog.records if record.name.startswith("lm_eval")]


def test_the_embedded_suite_scores_as_in_lm_eval_and_is_found_without_its_index(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        catalogue.Catalogue, "_everything", property(lambda self: pytest.fail("indexed all of lm-eval"))
    )
    path = Path(forgetting.micro.__file__).parent
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(path / "model"),
        AutoTokenizer.from_pretrained(path / "model"),
    )
    suite = load_suite(["micro", "micro_facts"], limit=30)
    names = [info.name for info in suite.capabilities()]
    assert "micro_facts" in names and len(names) == len(set(names)) == 8
    results = lm_eval_results(model, tokenizer, names, path / "probes", limit=30)
    scores = suite.evaluate(model, tokenizer)
    for name in names:
        expected = [sample["acc"] for sample in results["samples"][name]]
        assert scores[name].items == expected
        assert scores[name].value == pytest.approx(results["results"][name]["acc,none"])
    assert next(info for info in suite.capabilities() if info.name == "micro_facts").chance == 0.25


def blimp_pairs(n: int = 4) -> str:
    rows = [{"sentence_good": f"w{2 + k} w3 w4", "sentence_bad": f"w{2 + k} w3 w5"} for k in range(n)]
    rows[0]["note"] = "one\u2028two\x85three"  # ends no line of JSON lines
    rows[1:] = [row | {"note": ""} for row in rows[1:]]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def test_local_data_replace_the_hub(tmp_path: Path) -> None:
    (tmp_path / "adjunct_island.jsonl").write_text(blimp_pairs())
    mmlu = {"question": "w2 w3", "choices": ["w4", "w5", "w6", "w7"], "answer": 1}
    for subject, n in (("abstract_algebra", 3), ("anatomy", 2)):
        (tmp_path / "mmlu" / subject).mkdir(parents=True)
        (tmp_path / "mmlu" / subject / "test.json").write_text(json.dumps([mmlu] * n))
    (tmp_path / "gsm8k" / "data").mkdir(parents=True)
    for split, n in (("train", 6), ("test", 2)):
        rows = [{"question": f"w{k + 2}", "answer": f"w3 #### {k}"} for k in range(n)]
        datasets.Dataset.from_list(rows).to_parquet(tmp_path / "gsm8k" / "data" / f"{split}-00000-of-00001.parquet")
    names = ["blimp_adjunct_island", "mmlu_abstract_algebra", "mmlu_anatomy", "gsm8k"]
    suite = load_suite(names, data_dir=tmp_path)
    assert [(i.name, i.metric, i.chance, i.n) for i in suite.capabilities()] == [
        ("blimp_adjunct_island", "acc", 0.5, 4),
        ("mmlu_abstract_algebra", "acc", 0.25, 3),
        ("mmlu_anatomy", "acc", 0.25, 2),
        ("gsm8k", "exact_match", 0.0, 2),
    ]
    shots = suite._capabilities[-1].requests[0].args[0]
    assert shots.count("Question:") == 6 and "####" in shots


def test_a_group_is_one_column_and_a_tag_a_column_per_task(tmp_path: Path, folder: Path) -> None:
    for name in ("choice", "declared"):
        (tmp_path / f"{name}.yaml").write_text((folder / f"{name}.yaml").read_text() + "tag: pair\n")
    (tmp_path / "load.py").write_text((folder / "load.py").read_text())
    (tmp_path / "data.jsonl").write_text((folder / "data.jsonl").read_text())
    (tmp_path / "both.yaml").write_text("group: both\ntask: [declared, choice]\nmetadata: {version: 7}\n")
    found = catalogue.Catalogue(None)
    manager = found._manager([tmp_path])
    (group,) = found._load(manager, ["both"])
    assert [column.name for column in found._load(manager, ["pair"])] == ["choice", "declared"]
    suite = Suite([_Capability(group)])
    (info,) = suite.capabilities()
    assert (info.name, info.n, info.version) == ("both", 24, "7")
    parts = load_suite([str(folder)], trust_remote_code=True).evaluate(MODEL, TOKENIZER)
    score = suite.evaluate(MODEL, TOKENIZER)["both"]
    assert score.items == parts["declared"].items + parts["choice"].items
    assert score.value == pytest.approx(sum(score.items) / 24)


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="data_dir .*: is not a folder"):
        load_suite(["blimp"], data_dir=tmp_path / "none")
    with pytest.raises(UsageError, match="has no data for task 'blimp_adjunct_island'; give .*adjunct_island.jsonl"):
        load_suite(["blimp_adjunct_island"], data_dir=tmp_path)
    (tmp_path / "gsm8k").mkdir()
    (tmp_path / "gsm8k" / "test.jsonl").write_text('{"question": "w2", "answer": "#### 2"}\n')
    with pytest.raises(
        UsageError, match="task 'gsm8k' needs the split 'train', and .*gsm8k has test; give .*train.jsonl"
    ):
        load_suite(["gsm8k"], data_dir=tmp_path)
    (tmp_path / "gsm8k" / "train.jsonl").write_text("not json")
    with pytest.raises(UsageError, match="train.jsonl' is not JSON"):
        load_suite(["gsm8k"], data_dir=tmp_path)
    with pytest.raises(UsageError, match="suite 'no/such': is not a folder"):
        load_suite(["no/such"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="the folder has no lm-eval task"):
        load_suite([str(tmp_path / "empty")])
    with pytest.raises(UsageError, match="task 'piqa': cannot be loaded .*give data_dir"):
        load_suite(["piqa"])


def test_unknown_names_get_the_nearest_one(monkeypatch: pytest.MonkeyPatch) -> None:
    class Index:
        all_tasks = ("truthfulqa", "lambada_standard")

    monkeypatch.setattr(catalogue.Catalogue, "_everything", Index())
    for name, near in (("mikro", "micro"), ("blimp_adjunct_iland", "blimp_adjunct_island"), ("truthqa", "truthfulqa")):
        with pytest.raises(UsageError, match=f"unknown suite or task {name!r}; did you mean {near!r}"):
            load_suite([name])
    with pytest.raises(UsageError, match="suites: bias, blimp, micro, standard; or an lm-eval task's name"):
        load_suite(["zzzzzzzzzz"])


def test_suites_are_described() -> None:
    assert list(SUITES) == ["bias", "blimp", "micro", "standard"]
    assert all(SUITES.get(name).description for name in SUITES)


def test_real_blimp_is_found_whole(real_data: Path) -> None:
    suite = load_suite(["blimp"], data_dir=real_data / "blimp", limit=2)
    assert [info.n for info in suite.capabilities()] == [2] * 67
    assert {info.chance for info in suite.capabilities()} == {0.5}
