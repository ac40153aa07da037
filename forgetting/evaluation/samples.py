"""lm-eval's record of one scored item, as its ``--log_samples`` writes it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from lm_eval.api.task import Task


def sample_record(task: Task, requests: Sequence[Instance], metric: str, value: Any) -> dict[str, Any]:
    """Return the record of one document whose requests hold filtered responses.

    It has the keys of lm-eval's ``SampleResult`` (0.4.13), with ``arguments``, ``resps`` and ``target`` in the form
    in which they are written to ``samples_*.jsonl``; of the metrics, the one that is reported.

    Args:
        task: lm-eval's.
        requests: All of the document's, in the order of its choices.
        metric: The task's metric that is reported.
        value: What it is of this document.
    """
    from lm_eval.utils import handle_non_serializable

    doc = requests[0].doc
    filter_name = next(iter(requests[0].filtered_resps))
    filtered = [request.filtered_resps[filter_name] for request in requests]
    target = str(task.doc_to_target(doc))
    plain = json.dumps(doc, indent=2, default=handle_non_serializable, ensure_ascii=False)
    return {
        "doc_id": requests[0].doc_id,
        "doc": json.loads(plain),
        "target": target,
        "arguments": {
            f"gen_args_{i}": {f"arg_{j}": argument for j, argument in enumerate(request.args)}
            for i, request in enumerate(requests)
        },
        "resps": [_written(request.resps) for request in requests],
        "filtered_resps": _written(filtered),
        "filter": filter_name,
        "metrics": [metric],
        "doc_hash": _digest(plain),
        "prompt_hash": _digest(str(requests[0].arguments[0])),
        "target_hash": _digest(target),
        metric: value,
    }


def _written(response: Any) -> Any:
    """Nested lists of text, as lm-eval writes responses."""
    return [_written(part) for part in response] if isinstance(response, (list, tuple)) else str(response)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
