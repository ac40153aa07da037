"""Audits of real fine-tunes of the embedded model: what was done to it is what the verdict says."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from forgetting.audit.items import paired
from forgetting.audit.load import AuditInput, load_input, weights_digest
from forgetting.audit.measure import measure
from forgetting.audit.run import Audit, audit_models, audit_samples
from forgetting.audit.samples import read_samples
from forgetting.audit.schema import Settings
from forgetting.audit.write import write_audit
from forgetting.errors import UsageError
from forgetting.evaluation.lm import SharedContextLM
from forgetting.evaluation.suite import load_suite
from forgetting.micro.probes import probe_directory
from forgetting.models import LoadedModel, load_model
from tests.audit.conftest import FineTunes

LIMIT = 100


@pytest.fixture(scope="module")
def base() -> LoadedModel:
    return load_model("micro")


@pytest.fixture(scope="module")
def audits(base: LoadedModel, fine_tunes: FineTunes) -> dict[str, Audit]:
    suite = load_suite(["micro"], limit=LIMIT)
    found = {}
    for name in ("naive", "replay"):
        given = load_input("micro", str(getattr(fine_tunes, name)), limit=2, data=fine_tunes.data)
        given = AuditInput(base, given.tuned, suite, given.own, given.batch_size, given.same_tokenizer)
        found[name] = audit_models(given, Settings(limit=LIMIT))
    copied = LoadedModel("a copy", copy.deepcopy(base.model), base.tokenizer)
    few = load_suite(["micro"], limit=40)
    found["copy"] = audit_models(AuditInput(base, copied, few, None, 64, True), Settings(limit=40))
    return found


def test_naive_regressed_replay_and_an_untouched_copy_retained(audits: dict[str, Audit]) -> None:
    assert {name: audit.verdict.verdict for name, audit in audits.items()} == {
        "naive": "REGRESSED",
        "replay": "RETAINED",
        "copy": "RETAINED",
    }
    for name in ("naive", "replay"):  # both learned what they were tuned for: the loss is not one's failure to train
        own = audits[name].verdict.own
        assert own is not None and own.difference.low is not None and own.difference.low > 0.2, own
    untouched = audits["copy"].verdict
    assert untouched.base.sha256 == untouched.tuned.sha256 != audits["naive"].verdict.tuned.sha256
    assert all((c.lost, c.gained) == (0, 0) for c in untouched.capabilities)
    assert all(
        c.noise is not None and c.noise.largest is not None and c.noise.largest < 1e-3 for c in untouched.capabilities
    )


def test_twenty_items_are_inconclusive_with_a_number(base: LoadedModel, fine_tunes: FineTunes) -> None:
    given = load_input("micro", str(fine_tunes.replay), limit=20)
    found = audit_models(given, Settings(limit=20)).verdict
    assert found.verdict == "INCONCLUSIVE" and found.items_to_decide is not None and found.items_to_decide > 20
    assert f"About {found.items_to_decide} items per capability would decide" in found.why


def test_a_sequential_audit_stops_early_with_the_same_verdict(
    base: LoadedModel, fine_tunes: FineTunes, audits: dict[str, Audit]
) -> None:
    given = load_input("micro", str(fine_tunes.naive), limit=LIMIT)
    found = audit_models(given, Settings(limit=LIMIT, sequential=True))
    looks = found.verdict.looks
    assert found.verdict.verdict == "REGRESSED" and looks[-1].verdict == "REGRESSED"
    assert looks[-1].items < looks[-1].of == 8 * LIMIT and any("Stopped" in note for note in found.verdict.notes)
    # What was scored in parts is what is scored whole.
    whole = {(p.base.name, i.key): i.outcome for p in audits["naive"].pairs for i in p.tuned.items}
    assert all(whole[p.base.name, i.key] == i.outcome for p in found.pairs for i in p.tuned.items)


def test_its_logs_are_lm_evals_and_give_the_same_verdict(audits: dict[str, Audit], tmp_path: Path) -> None:
    audit = audits["naive"]
    paths = write_audit(audit, tmp_path)
    again = audit_samples(paths.samples / "base", paths.samples / "tuned", Settings(limit=LIMIT)).verdict
    assert again.verdict == "REGRESSED" and again.prompts_sha256 == audit.verdict.prompts_sha256
    for one, two in zip(
        sorted(again.capabilities, key=lambda c: c.name),
        sorted(audit.verdict.capabilities, key=lambda c: c.name),
        strict=True,
    ):
        assert one == two.model_copy(update={"noise": None})
    from lm_eval.result_schema import SampleResult

    line = json.loads(next((paths.samples / "base").glob("samples_micro_facts_*.jsonl")).read_text().splitlines()[0])
    assert set(SampleResult.__annotations__) <= set(line) and line["acc"] in (0.0, 1.0)
    page = paths.page.read_text()
    assert "REGRESSED" in page and '<article class="flip lost"' in page and str(paths.page.parent) not in page


def test_what_lm_eval_itself_writes_is_read_as_what_is_measured_here(base: LoadedModel, tmp_path: Path) -> None:
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(probe_directory()), include_defaults=False)
    lm = SharedContextLM(base.model, base.tokenizer)
    results: Any = simple_evaluate(
        model=lm, tasks=["micro_facts"], task_manager=manager, limit=8, log_samples=True, bootstrap_iters=0
    )
    tracker, samples = EvaluationTracker(output_path=str(tmp_path)), results.pop("samples")
    tracker.save_results_aggregated(results=results, samples=samples)
    tracker.save_results_samples("micro_facts", samples["micro_facts"])
    theirs = read_samples(tmp_path)[0]["micro_facts"]
    ours = measure(base, load_suite(["micro_facts"], limit=8), 64)["micro_facts"]
    assert (theirs.metric, theirs.chance, theirs.higher_is_better) == ("acc", 0.25, True)
    for one, two in zip(theirs.items, ours.items, strict=True):
        assert (one.key, one.doc_hash, one.prompt_hash, one.outcome) == (
            two.key,
            two.doc_hash,
            two.prompt_hash,
            two.outcome,
        )
        assert (one.prompt, one.choices, one.target) == (two.prompt, two.choices, two.target)
        assert one.log_probs == pytest.approx(two.log_probs, abs=1e-4)
    assert len(paired({"micro_facts": theirs}, {"micro_facts": ours})) == 1


def adapter(base: LoadedModel, folder: Path) -> Any:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    options: Any = {"r": 2, "target_modules": ["q_proj"], "init_lora_weights": False, "task_type": "CAUSAL_LM"}
    wrapped: Any = get_peft_model(copy.deepcopy(base.model), LoraConfig(**options))
    wrapped.save_pretrained(folder)
    return wrapped


def test_an_adapter_is_merged_and_described(base: LoadedModel, tmp_path: Path) -> None:
    wrapped = adapter(base, tmp_path)
    (tmp_path / "trainer_state.json").write_text(
        json.dumps({"max_steps": 7, "total_flos": 1e9, "log_history": [{"learning_rate": 1e-3}, {"loss": 2.0}]})
    )
    (tmp_path / "README.md").write_text("---\nlicense: mit\ndatasets: [mine]\nunknown: x\n---\n# A model\n")
    given = load_input("micro", str(tmp_path), limit=2)
    assert given.same_tokenizer and given.tuned.tokenizer is given.base.tokenizer
    expected = wrapped.merge_and_unload().state_dict()
    merged = given.tuned.model.state_dict()
    assert all(torch.equal(merged[name], value) for name, value in expected.items()) and set(merged) == set(expected)
    assert all(parameter.requires_grad for parameter in given.tuned.model.parameters())  # to be practised further
    assert weights_digest(given.base.model) == weights_digest(base.model) != weights_digest(given.tuned.model)
    found = audit_models(given, Settings(limit=2)).verdict.tuned
    assert found.kind == "adapter" and found.adapter is not None and found.adapter["r"] == 2
    assert found.card == {"license": "mit", "datasets": ["mine"]}
    assert found.training == {"max_steps": 7, "total_flos": 1e9, "peak_learning_rate": 1e-3}


def test_adapters_that_cannot_be_used_are_refused(base: LoadedModel, tmp_path: Path) -> None:
    adapter(base, tmp_path)
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    with pytest.raises(UsageError, match=r"no adapter_model\.safetensors \(pickled weights can run code\)"):
        load_input("micro", str(tmp_path), limit=2)
    (tmp_path / "adapter_config.json").write_text("[1]")
    with pytest.raises(UsageError, match=r"adapter_config\.json is not a JSON object"):
        load_input("micro", str(tmp_path), limit=2)
