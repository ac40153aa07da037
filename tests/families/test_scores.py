"""Scores by brute force: pseudo-log-likelihood, text to text, heads, and what a scenario leaves open."""

from __future__ import annotations

import pytest
import torch

from forgetting.config import EvaluationConfig
from forgetting.errors import UsageError
from forgetting.evaluation.pseudo_likelihood import PseudoLikelihoods
from forgetting.evaluation.text_to_text import TextToTextLikelihoods, TextToTextReader
from forgetting.families import FAMILIES
from forgetting.families.scoring import predictions
from forgetting.tasks.pretraining import PretrainingText
from forgetting.tasks.scenario import with_scenario
from forgetting.tasks.task import Example, Sequence, Task
from tests.families.small import documents, family, image_task, loaded, sequence, text_task

PAIRS = [("w5 w6 w7", " w8 w9"), ("w5 w6 w7", " w10"), ("", "w11 w12 w13"), ("w5 w6 w7 w8 w9 w10", " w11")]


@pytest.mark.parametrize("name", ["bert", "albert"])
def test_pseudo_log_likelihood_masks_one_token_at_a_time(name: str) -> None:
    known = family(name)
    tokenizer, base, classes = known.tokenizer, known.base.model.base, known.labels.outputs  # type: ignore[attr-defined]
    prepared = PseudoLikelihoods(PAIRS, tokenizer, first_token=classes, batch_size=3, max_length=16)
    assert prepared.counts.tolist() == [2, 1, 3, 1]
    for (context, continuation), (score, greedy) in zip(PAIRS, prepared.score(known.base.model), strict=True):
        before, after = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (context, continuation))
        expected, best = 0.0, True
        for j in range(len(after)):
            ids = torch.tensor([[2, *before, *after, 3]])
            position = 1 + len(before) + j
            ids[0, position] = 4
            log_probs = base(ids).logits[0, position].log_softmax(-1)
            expected += float(log_probs[after[j]])
            best &= int(log_probs.argmax()) == after[j]
        assert score == pytest.approx(expected, abs=1e-5) and greedy == best


def test_a_minimal_pair_is_decided_by_pseudo_log_likelihood_of_whole_sentences() -> None:
    known = family("bert")
    prepared = PseudoLikelihoods(
        [("", "w5 w6"), ("", "w5 w7")], known.tokenizer, first_token=5, batch_size=8, max_length=16
    )
    assert prepared.counts.tolist() == [2, 2]


def test_text_to_text_scores_are_the_decoder_s() -> None:
    known = family("t5")
    base, tokenizer = known.base.model.base, known.tokenizer
    pairs = [pair for pair in PAIRS if pair[0]]
    prepared = TextToTextLikelihoods(pairs, tokenizer, base.config, batch_size=2, max_length=16)
    assert prepared.counts.tolist() == [2, 1, 1]
    for (context, continuation), (score, greedy) in zip(pairs, prepared.score(known.base.model), strict=True):
        read = torch.tensor([[*tokenizer(context, add_special_tokens=False)["input_ids"], 1]])
        written = tokenizer(continuation, add_special_tokens=False)["input_ids"]
        logits = base(input_ids=read, decoder_input_ids=torch.tensor([[0, *written[:-1]]])).logits[0].log_softmax(-1)
        assert score == pytest.approx(sum(float(logits[t, token]) for t, token in enumerate(written)), abs=1e-5)
        assert greedy == (logits.argmax(-1).tolist() == written)


def test_text_to_text_generation_is_greedy_decoding_step_by_step() -> None:
    known = family("t5")
    base, tokenizer = known.base.model.base, known.tokenizer
    prompts = ["w5 w6 w7", "w9"]
    texts = (
        TextToTextReader(base.config)
        .generations(prompts, tokenizer, batch_size=2, max_length=16, max_new_tokens=4)
        .generate(known.base.model)
    )
    for prompt, text in zip(prompts, texts, strict=True):
        read = torch.tensor([[*tokenizer(prompt, add_special_tokens=False)["input_ids"], 1]])
        written = [0]
        for _ in range(4):
            step = int(base(input_ids=read, decoder_input_ids=torch.tensor([written])).logits[0, -1].argmax())
            if step == 1:
                break
            written.append(step)
        assert text == tokenizer.decode(written[1:], skip_special_tokens=True)


@pytest.mark.parametrize("name", ["bert", "vit"])
def test_a_head_s_score_is_the_argmax_among_what_the_scenario_leaves_open(name: str) -> None:
    for scenario, classes in (("task", 2), ("class", 5)):
        known = family(name, scenario)  # type: ignore[arg-type]
        task = known.sequence.tasks[0]
        assert len(task.test[0].choices or ()) == classes
        assert task.chance == pytest.approx(1 / classes)
        features = known.encode(task, task.test, 16)
        from forgetting.trainer import padded_batches

        (batch,) = padded_batches(features, known.tokenizer, len(features))
        logits, labels = predictions(known.base.model, batch)
        right = (logits.argmax(1) == labels).double().tolist()
        score = known.scorer(task, batch_size=4, max_length=16).score(known.base.model)
        assert score.items == right and score.value == pytest.approx(sum(right) / len(right))
        assert int((logits > -1e3).sum(1).max()) == classes


def test_scenarios_change_choices_and_chance_only() -> None:
    tasks = Sequence("s", (text_task("one", 0), text_task("two", 1)))
    assert with_scenario(tasks, None) is tasks and with_scenario(tasks, "task") is tasks
    assert with_scenario(tasks, "domain") is tasks
    other = Sequence("s", (text_task("one", 0), text_task("two", 1, (" w9", " w10"))))
    opened = with_scenario(other, "class")
    assert opened.tasks[1].test[0].choices == (" w5", " w6", " w10", " w9") and opened.tasks[1].chance == 0.25
    assert [e.completion for e in opened.tasks[1].test] == [e.completion for e in other.tasks[1].test]
    with pytest.raises(UsageError, match="have different labels; use task or class"):
        with_scenario(other, "domain")
    written = Task("t", *[(Example("w5", " w6"),)] * 3, metric="exact_match")  # type: ignore[misc, arg-type]
    with pytest.raises(UsageError, match="'class': task 't' has metric 'exact_match'; it needs choices"):
        with_scenario(Sequence("s", (written,)), "class")


def test_domain_has_one_head_and_task_has_one_each() -> None:
    tasks = Sequence("s", (text_task("one", 0), text_task("two", 1)))
    for scenario, sizes in (("task", [2, 2]), ("domain", [2]), ("class", [2])):
        known = FAMILIES.get("encoder")(loaded("bert"), tasks, scenario)  # type: ignore[arg-type]
        assert known.labels.sizes == sizes  # type: ignore[attr-defined]


def test_wrong_matches_of_model_and_sequence_are_one_line() -> None:
    with pytest.raises(UsageError, match="task 'one' is of images, and model 'bert' reads text"):
        FAMILIES.get("encoder")(loaded("bert"), sequence("vit"))
    with pytest.raises(UsageError, match="task 'one' is of text, and model 'vit' reads images"):
        FAMILIES.get("vision")(loaded("vit"), sequence("bert"))
    written = Task("t", *[(Example("w5", " w6"),)] * 3, metric="exact_match")  # type: ignore[misc, arg-type]
    with pytest.raises(UsageError, match="task 't': metric 'exact_match' needs a model that writes"):
        FAMILIES.get("encoder")(loaded("bert"), Sequence("s", (written,)))


@pytest.mark.parametrize("name", ["bert", "t5", "vit"])
def test_drift_is_the_change_of_what_was_pretrained(name: str) -> None:
    known = family(name)
    text = PretrainingText(documents(name), documents(name), {"pretraining": documents(name, 8)})
    meter = known.drift(EvaluationConfig(drift_tokens=1000, batch_size=3), text, 16)
    base = known.base.model
    (before,) = meter.measure(base).values()
    assert before.kl_forward == before.kl_reverse == 0
    (batch,) = _one_batch(known, documents(name, 8))
    assert before.ce == pytest.approx(float(base(**batch).loss), rel=1e-5)
    tuned = family(name).base.model
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    after = meter.measure(tuned, known.sequence.tasks[0].test)
    assert after["pretraining"].kl_forward > 0 and after["pretraining"].kl_reverse > 0
    assert 0 < (after["pretraining"].total_variation or 0) < 1
    assert ("task_inputs" in after) == (name != "vit")
    p, q = (predictions(m, batch)[0].log_softmax(-1) for m in (base, tuned))
    assert after["pretraining"].kl_forward == pytest.approx(float((p.exp() * (p - q)).sum(1).mean()), rel=1e-4)


def _one_batch(known: object, found: list) -> list[dict[str, torch.Tensor]]:
    from forgetting.trainer import padded_batches

    features = known.encode_pretraining(found, 16)  # type: ignore[attr-defined]
    return padded_batches(features, known.tokenizer, len(features))  # type: ignore[attr-defined]


def test_an_image_task_keeps_its_images_apart() -> None:
    task = image_task("one", 0)
    assert len({example.prompt for example in task.train}) == len(task.train)
