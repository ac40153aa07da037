"""Avalanche's metrics against ours: where the definitions agree, and where they do not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from forgetting import metrics
from forgetting.avalanche import as_benchmark, digits_sequence


def test_of_one_run_on_split_digits() -> None:
    """Accuracies, BWT and FWT agree; forgetting and the stream's accuracy are other quantities."""
    from avalanche.evaluation.metrics import accuracy_metrics, bwt_metrics, forgetting_metrics, forward_transfer_metrics
    from avalanche.training.plugins import EvaluationPlugin
    from avalanche.training.templates import SupervisedTemplate

    sequence = digits_sequence("split")
    benchmark = as_benchmark(sequence, scenario="class")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 10))
    evaluator = EvaluationPlugin(
        accuracy_metrics(experience=True, stream=True),
        forgetting_metrics(stream=True),
        bwt_metrics(stream=True),
        forward_transfer_metrics(stream=True),
        loggers=[],
    )
    strategy = SupervisedTemplate(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=1e-2),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=32,
        eval_mb_size=512,
        evaluator=evaluator,
        eval_every=0,  # before the first experience too: forward transfer needs it
    )
    tests = [task.test.tensors() for task in sequence.tasks]

    def row() -> list[float]:
        with torch.no_grad():
            predictions = [model(x).argmax(1) for x, _ in tests]
        wanted = [torch.tensor(t.outputs)[y] for t, (_, y) in zip(sequence.tasks, tests, strict=True)]
        return [float((p == y).double().mean()) for p, y in zip(predictions, wanted, strict=True)]

    R = [row()]
    transfers = []
    for experience in benchmark.train_stream:
        theirs = strategy.train(experience, eval_streams=[benchmark.test_stream])
        R.append(row())
        transfers.append(_of(theirs, "StreamForwardTransfer"))
    for j in range(5):
        assert theirs[f"Top1_Acc_Exp/eval_phase/test_stream/Exp{j:03d}"] == pytest.approx(R[-1][j])
    bwt = metrics.backward_transfer(R)
    assert bwt < -0.1
    assert _of(theirs, "StreamBWT") == pytest.approx(bwt)
    # Their forgetting is the first score minus the last, −BWT; Chaudhry's is the best minus the last.
    assert _of(theirs, "StreamForgetting") == pytest.approx(-bwt)
    assert metrics.forgetting_measure(R) >= -bwt - 1e-12
    # Their stream's accuracy is a mean over items, ours a mean over tasks.
    sizes = [len(y) for _, y in tests]
    assert _of(theirs, "Top1_Acc_Stream") == pytest.approx(np.average(R[-1], weights=sizes))
    assert len(set(sizes)) > 1 and metrics.average_accuracy(R) != pytest.approx(
        np.average(R[-1], weights=sizes), abs=1e-9
    )
    # Forward transfer: both from the model as it came (here: random) to what it is before the task.
    assert transfers[3] == pytest.approx(metrics.forward_transfer(R))


def _of(found: dict[str, Any], name: str) -> float:
    (value,) = (value for key, value in found.items() if key.startswith(f"{name}/eval_phase"))
    return float(value)


def test_forgetting_differs_where_a_task_improved_before_it_was_forgotten() -> None:
    from avalanche.evaluation.metrics import BWT, Forgetting, ForwardTransfer

    R = np.array([[0.1, 0.2, 0.1], [0.6, 0.3, 0.2], [0.9, 0.8, 0.4], [0.5, 0.7, 0.9]])
    forgetting, bwt, transfer = Forgetting(), BWT(), ForwardTransfer()
    for j in range(3):
        for metric in (forgetting, bwt):
            metric.update(j, R[j + 1, j], initial=True)
        transfer.update(j, R[0, j], initial=True)
    for j in range(2):
        for metric in (forgetting, bwt):
            metric.update(j, R[3, j])
        transfer.update(j + 1, R[j + 1, j + 1])
    assert np.mean(list(forgetting.result().values())) == pytest.approx(0.1)
    assert metrics.forgetting_measure(R) == pytest.approx(0.25)  # task 1 had come to 0.9
    assert np.mean(list(bwt.result().values())) == pytest.approx(metrics.backward_transfer(R)) == pytest.approx(-0.1)
    assert np.mean(list(transfer.result().values())) == pytest.approx(metrics.forward_transfer(R))
