"""Prompts by hand: which text stands before an item, that no scored item is among the shots, and what comes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel

from forgetting.analysis.recovery import recovered_share
from forgetting.errors import UsageError
from forgetting.evaluation.prompting import Prompt, prompt_recovery
from forgetting.evaluation.suite import CapabilityScore, Suite, load_suite
from forgetting.micro.probes import load_probe
from forgetting.results import CapabilityInfo
from tests.evaluation.test_lm import MODELS, TOKENIZER
from tests.models_for_tests import tiny_gpt2

CHOICE = """
task: choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{prompt}}}}"
doc_to_choice: "{{{{options}}}}"
doc_to_target: label
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
metadata: {{version: 1.0}}
"""
WRITE = CHOICE.replace("task: choice", "task: write").replace("multiple_choice", "generate_until").replace(
    'doc_to_choice: "{{{{options}}}}"\ndoc_to_target: label',
    'doc_to_target: "{{{{options[label]}}}}"\ngeneration_kwargs: {{until: ["w9"], max_gen_toks: 6}}',
).replace("metric: acc", "metric: exact_match")  # fmt: skip
WHOLE = CHOICE.replace("task: choice", "task: whole").replace("multiple_choice", "loglikelihood_rolling").replace(
    'doc_to_choice: "{{{{options}}}}"\ndoc_to_target: label', 'doc_to_target: "{{{{prompt}}}}"'
).replace("metric: acc, aggregation: mean, higher_is_better: true", "metric: word_perplexity")  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve items; the sixth is the second again."""
    made = tmp_path_factory.mktemp("tasks")
    rows = [
        {"prompt": f"w{i + 2} w{i + 3}", "options": [f"w{i + 15}", f"w{i + 16}", f"w{i + 17}"], "label": i % 3}
        for i in range(12)
    ]
    rows[5] = rows[1]
    (made / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, text in (("choice", CHOICE), ("write", WRITE), ("whole", WHOLE)):
        (made / name).mkdir()
        (made / name / f"{name}.yaml").write_text(text.format(data=made / "data.jsonl"))
    return made


def contexts(suite: Suite) -> list[str]:
    seen = {request.doc_id: request.args[0] for request in suite._requests}
    return [seen[document] for document in sorted(seen)]


def test_shots_are_solved_items_that_are_not_scored(folder: Path) -> None:
    plain = load_suite([str(folder / "choice")], limit=4)
    prompted = load_suite([str(folder / "choice")], limit=4, prompt=Prompt(shots=3))
    solved = {f"w{i + 2} w{i + 3} w{i + 15 + i % 3}" for i in range(4, 12) if i != 5}
    drawn = set()
    for before, after in zip(contexts(plain), contexts(prompted), strict=True):
        *shots, item = after.split("\n\n")
        assert item == before and len(shots) == len(set(shots)) == 3 and set(shots) <= solved
        drawn |= set(shots)
    assert len(drawn) > 3  # anew for every item
    assert contexts(prompted) == contexts(load_suite([str(folder / "choice")], limit=4, prompt=Prompt(shots=3)))


def test_after_an_offset_the_first_items_are_shots_and_the_rest_too(folder: Path) -> None:
    prompted = load_suite([str(folder / "choice")], limit=3, offset=9, prompt=Prompt(shots=7))
    items = [text.split("\n\n")[-1] for text in contexts(prompted)]
    assert items == ["w11 w12", "w12 w13", "w13 w14"]
    drawn = {shot for text in contexts(prompted) for shot in text.split("\n\n")[:-1]}
    assert drawn <= {f"w{i + 2} w{i + 3} w{i + 15 + i % 3}" for i in range(9) if i != 5} and len(drawn) >= 7


def test_an_instruction_stands_first(folder: Path) -> None:
    plain = load_suite([str(folder / "choice")], limit=2)
    told = load_suite([str(folder / "choice")], limit=2, prompt=Prompt(instruction="w30 w31\n"))
    assert contexts(told) == ["w30 w31\n" + text for text in contexts(plain)]
    both = load_suite([str(folder / "choice")], limit=2, prompt=Prompt(shots=1, instruction="w30\n"))
    assert all(text.startswith("w30\nw") and text.count("\n\n") == 1 for text in contexts(both))


def test_the_embedded_probes_take_shots() -> None:
    items = load_probe("micro_translation")
    (first, *_) = contexts(load_suite(["micro_translation"], limit=1, prompt=Prompt(shots=2)))
    *shots, item = first.split("\n\n")
    assert item == items[0].context
    assert set(shots) <= {f"{i.context} {i.choices[i.gold]}" for i in items[1:]} and len(shots) == 2


def test_what_takes_no_prompt_or_has_no_items_left_is_named(folder: Path) -> None:
    for options in ({"shots": 0}, {"shots": -1, "instruction": "x"}):
        with pytest.raises(UsageError, match="shots and no instruction; give either"):
            Prompt(**options)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="'choice': 0 of 12 items are not scored, and 2 shots need 3; lower limit"):
        load_suite([str(folder / "choice")], prompt=Prompt(shots=2))
    with pytest.raises(UsageError, match="'choice': 2 of 12 items are not scored"):
        load_suite([str(folder / "choice")], limit=10, prompt=Prompt(shots=2))
    for prompt in (Prompt(shots=1), Prompt(instruction="w2 ")):
        with pytest.raises(UsageError, match="'whole': scores whole texts"):
            load_suite([str(folder / "whole")], limit=2, prompt=prompt)


def test_the_table_is_four_scores_and_what_came_back(folder: Path) -> None:
    names = [str(folder / "choice"), str(folder / "write")]
    plain, prompted = load_suite(names, limit=4), load_suite(names, limit=4, prompt=Prompt(shots=2))
    base, tuned = MODELS["llama"], MODELS["gpt2"]
    frame = prompt_recovery(base, tuned, TOKENIZER, plain, prompted, batch_size=8).set_index("capability")
    assert list(frame.index) == ["choice", "write"]
    columns = {"base": (plain, base), "tuned": (plain, tuned), "base_prompted": (prompted, base)}
    for name, (suite, model) in (columns | {"tuned_prompted": (prompted, tuned)}).items():
        scores = suite.evaluate(model, TOKENIZER)
        assert frame[name].to_dict() == {key: score.value for key, score in scores.items()}
    items = [s.evaluate(m, TOKENIZER)["choice"].items for s, m in ((prompted, tuned), (plain, tuned), (plain, base))]
    share = recovered_share(*items)
    found = frame.loc["choice", ["recovered", "low", "high"]].tolist()
    assert found == pytest.approx([share.mean, share.low, share.high], nan_ok=True)
    with pytest.raises(ValueError, match="need the same items"):
        prompt_recovery(base, tuned, TOKENIZER, load_suite(names, limit=3), prompted)


class Fixed:
    """A suite of one capability, whose items are known by model."""

    def __init__(self, items: dict[int, list[float]]) -> None:
        self.items = items

    def capabilities(self) -> list[CapabilityInfo]:
        return [CapabilityInfo(name="facts", metric="acc", chance=0.5, n=10)]

    def check_length(self, model: PreTrainedModel, tokenizer: object) -> None:
        assert id(model) in self.items

    def evaluate(self, model: PreTrainedModel, tokenizer: object, batch_size: int) -> dict[str, CapabilityScore]:
        items = self.items[id(model)]
        return {"facts": CapabilityScore(sum(items) / 10, items)}


def test_what_came_back_is_the_tuned_models_gain_over_its_loss() -> None:
    base, tuned = MODELS["llama"], MODELS["gpt2"]
    right = {wanted: [1.0] * wanted + [0.0] * (10 - wanted) for wanted in range(11)}
    plain: Any = Fixed({id(base): right[9], id(tuned): right[1]})
    prompted: Any = Fixed({id(base): right[10], id(tuned): right[7]})
    row = prompt_recovery(base, tuned, TOKENIZER, plain, prompted).iloc[0]
    assert row.tolist()[:5] == ["facts", 0.9, 0.1, 1.0, 0.7]
    share = recovered_share(right[7], right[1], right[9])
    assert row.tolist()[5:] == pytest.approx([(0.7 - 0.1) / (0.9 - 0.1), share.low, share.high])


def test_an_item_that_would_lose_its_prompt_is_named(folder: Path) -> None:
    """Of 24 tokens that a model reads, an item takes 2 (a choice is predicted, not read) and a shot 3."""
    model = tiny_gpt2()
    model.config.n_positions = 24
    choice, write = str(folder / "choice"), str(folder / "write")
    load_suite([choice], limit=2, prompt=Prompt(shots=7)).check_length(model, TOKENIZER)  # 21 + 2 read
    with pytest.raises(UsageError, match="'choice': item 0 has 26 tokens .* the model reads 24; give fewer shots"):
        load_suite([choice], limit=2, prompt=Prompt(shots=8)).check_length(model, TOKENIZER)
    load_suite([write], limit=2, prompt=Prompt(shots=5)).check_length(model, TOKENIZER)  # 15 + 2 and 6 written
    with pytest.raises(UsageError, match="'write': item 0 has 26 tokens"):
        load_suite([write], limit=2, prompt=Prompt(shots=6)).check_length(model, TOKENIZER)
    plain = load_suite([choice], limit=2)
    with pytest.raises(UsageError, match="item 0 has 26 tokens"):
        prompt_recovery(model, model, TOKENIZER, plain, load_suite([choice], limit=2, prompt=Prompt(shots=8)))
