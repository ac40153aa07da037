"""Items as examples, by lm-eval's forms of request; and a context is practised or scored, never both."""

from __future__ import annotations

from typing import Any

from forgetting.audit.items import Item
from forgetting.audit.practice import halves, solved
from forgetting.tasks.task import Example
from tests.audit.panels import record


def item(arguments: list[list[Any]], target: str) -> Item:
    made = {f"gen_args_{k}": {f"arg_{j}": value for j, value in enumerate(one)} for k, one in enumerate(arguments)}
    return Item("task", {"arguments": made, "target": target}, 1.0)


def test_every_kind_of_request_becomes_its_right_answer() -> None:
    choices = [["2 plus 2 is", " 4"], ["2 plus 2 is", " 5"]]
    assert solved([Item("task", record(0, 1.0), 1.0)]) == ([Example("question 0:", " yes")], [])
    assert solved([item(choices, "1")])[0] == [Example("2 plus 2 is", " 5")]
    assert solved([item(choices, "4")])[0] == [Example("2 plus 2 is", " 4")]  # the text, no number of a choice
    pair = [["", "the dogs run"], ["", "the dogs runs"]]
    assert solved([item(pair, "0")])[0] == [Example("", "the dogs run")]
    assert solved([item([["once upon a", " time"]], "time")])[0] == [Example("once upon a", " time")]
    writes = {"until": ["\n"]}
    assert solved([item([["Q: 1 + 1\nA:", writes]], "2")])[0] == [Example("Q: 1 + 1\nA:", " 2")]
    assert solved([item([["Q: 1 + 1\n", writes]], "2")])[0] == [Example("Q: 1 + 1\n", "2")]
    assert solved([item([["A whole text."]], "A whole text.")]) == ([], ["A whole text."])
    assert solved([item(choices, "six"), item([["a", " "]], ""), Item("task", {}, 0.0)]) == ([], [])


def test_halves_share_no_context() -> None:
    assert halves(5, None) == ([0, 2, 4], [1, 3])
    contexts = ["a", "a", "b", "c", "b", "c", "c"]
    practised, scored = halves(7, contexts)
    assert sorted(practised + scored) == list(range(7)) and practised and scored
    assert not {contexts[k] for k in practised} & {contexts[k] for k in scored}
