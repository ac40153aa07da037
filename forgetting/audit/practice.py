"""A capability's own items as text to practise, apart from those that are scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from forgetting.audit.items import Item
from forgetting.tasks.task import Example


def halves(n: int, contexts: Sequence[str] | None) -> tuple[list[int], list[int]]:
    """Positions to practise and positions to score: every second item, or the items of every second context.

    A context lies in one half whole: else what is practised would be asked.

    Args:
        n: Items.
        contexts: The context of each; ``None`` where none is shared.
    """
    labels: Sequence[Any] = range(n) if contexts is None else contexts
    order = {label: number for number, label in enumerate(dict.fromkeys(labels))}
    both: tuple[list[int], list[int]] = [], []
    for place, label in enumerate(labels):
        both[order[label] % 2].append(place)
    return both


def solved(items: Sequence[Item]) -> tuple[list[Example], list[str]]:
    """Return items as examples with the right answer, and items that are whole texts as these.

    Args:
        items: With lm-eval's requests: the right choice after its context, the continuation that is asked for, or the
            text of ``target`` after the prompt where the model writes. An item whose right choice is not named is left
            out.
    """
    examples, texts = [], []
    for item in items:
        requests = list((item.sample.get("arguments") or {}).values())
        if not requests:
            continue
        if len(requests) > 1:
            right = _right(requests, str(item.sample.get("target", "")))
            if right is not None:
                examples.append(Example(str(right.get("arg_0", "")), str(right.get("arg_1", ""))))
            continue
        prompt, asked = str(requests[0].get("arg_0", "")), requests[0].get("arg_1")
        if asked is None:
            texts.append(prompt)
        elif isinstance(asked, str):
            examples.append(Example(prompt, asked))
        elif target := str(item.sample.get("target", "")).strip():
            examples.append(Example(prompt, f" {target}" if prompt[-1:].strip() else target))
    return [example for example in examples if example.completion.strip()], [text for text in texts if text.strip()]


def _right(requests: Sequence[Mapping[str, Any]], target: str) -> Mapping[str, Any] | None:
    """The request of the right choice; lm-eval gives its number, or its text."""
    if target.isdigit() and int(target) < len(requests):
        return requests[int(target)]
    named = [
        request for request in requests if target.strip() and str(request.get("arg_1", "")).strip() == target.strip()
    ]
    return named[0] if len(named) == 1 else None
