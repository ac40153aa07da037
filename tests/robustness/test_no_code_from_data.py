"""No code from data: what the package calls, and what folders, templates and reports can make it do."""

from __future__ import annotations

import ast
import json
from functools import cache
from pathlib import Path

import pytest

import forgetting
from forgetting.config import ColumnMapping, TaskConfig
from forgetting.errors import UsageError
from forgetting.evaluation.catalogue import Catalogue
from forgetting.evaluation.untrusted import check_task_folder, sandbox_templates
from forgetting.models import load_model
from forgetting.tasks.build import load_task
from tests.audit.panels import hostile_audit
from tests.browser import CHROME, HOSTILE, MARK, NO_CHROME, shown
from tests.models_for_tests import save_tiny
from tests.report.conftest import write_study

ROOT = Path(forgetting.__file__).parent
SOURCES = sorted(ROOT.rglob("*.py"))


@cache
def nodes(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


@cache
def calls(path: Path) -> list[tuple[int, str, ast.Call]]:
    """Every call in a file: its line, the dotted name that is called, the call."""
    return [(node.lineno, ast.unparse(node.func), node) for node in nodes(path) if isinstance(node, ast.Call)]


def keywords(call: ast.Call) -> dict[str | None, str]:
    return {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}


RUNS_CODE = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "os.system",
    "os.popen",
    "torch.load",
    "pickle.load",
    "pickle.loads",
    "dill.load",
    "joblib.load",
    "marshal.loads",
    "shelve.open",
    "yaml.load_all",
    "yaml.unsafe_load",
    "yaml.full_load",
    "pd.read_pickle",
    "pandas.read_pickle",
    "np.fromfile",
    "torch.hub.load",
    "torch.jit.load",
}
MODULES = {"pickle", "dill", "joblib", "marshal", "shelve", "cloudpickle"}


def test_the_package_calls_nothing_that_unpickles_or_evaluates() -> None:
    for path in SOURCES:
        for line, name, call in calls(path):
            where = f"{path.relative_to(ROOT)}:{line}: {name}"
            assert name not in RUNS_CODE, where
            if name in ("np.load", "numpy.load"):
                assert keywords(call).get("allow_pickle") == "False", where
            if name == "yaml.load":  # a subclass of the safe loader, which has no tag more than refused ones
                assert (path.name, keywords(call)) == ("untrusted.py", {"Loader": "_TaskLoader"}), where
            if name.startswith("subprocess."):
                assert path.name == "provenance.py" and "shell" not in keywords(call), where
            if name.endswith(".from_pretrained") and name.split(".")[-2].startswith("Auto"):
                assert keywords(call).get("trust_remote_code") in ("trust_remote_code", "False"), where
        imported = {
            alias.name.split(".")[0]
            for node in nodes(path)
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in ([ast.alias(node.module or "")] if isinstance(node, ast.ImportFrom) else node.names)
        }
        assert not imported & MODULES, path


def test_models_are_read_from_safetensors_alone() -> None:
    (call,) = [call for _, name, call in calls(ROOT / "models.py") if name == "auto.from_pretrained"]
    assert keywords(call)["use_safetensors"] == "True"


def test_python_files_that_are_run_are_those_that_the_user_named() -> None:
    places = [(path.name, name) for path in SOURCES for _, name, _ in calls(path) if name.endswith("exec_module")]
    assert set(places) <= {("__init__.py", "spec.loader.exec_module"), ("scripts.py", "spec.loader.exec_module")}, (
        places
    )


# --- model folders --------------------------------------------------------------------------------------------------


def test_pickles_only_are_refused_with_the_way_to_convert_them(tmp_path: Path) -> None:
    save_tiny(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(UsageError, match=r"pickled weights only.*save_pretrained\(folder, safe_serialization=True\)"):
        load_model(str(tmp_path))


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ({"weight_map": {"a": "../other/model.safetensors"}}, "safetensors files of the folder alone"),
        ({"weight_map": {"a": "/etc/passwd"}}, "safetensors files of the folder alone"),
        ({"weight_map": {"a": "pytorch_model.bin"}}, "safetensors files of the folder alone"),
        ({"weight_map": {}}, "is not a safetensors index"),
        ({"weight_map": {"a": 3}}, "is not a safetensors index"),
    ],
)
def test_an_index_cannot_leave_its_folder(tmp_path: Path, index: object, said: str) -> None:
    save_tiny(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UsageError, match=said):
        load_model(str(tmp_path))


def test_an_adapter_does_not_load_the_model_that_it_names(tmp_path: Path) -> None:
    save_tiny(tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "/elsewhere"}')
    with pytest.raises(UsageError, match="holds an adapter"):
        load_model(str(tmp_path))


def test_architectures_that_are_no_list_are_one_line(tmp_path: Path) -> None:
    save_tiny(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": 5}))
    with pytest.raises(UsageError, match="architectures = 5 is not a list of names"):
        load_model(str(tmp_path))


REMOTE = """
import pathlib
from transformers import LlamaConfig, LlamaForCausalLM
pathlib.Path({mark!r}).write_text("ran")
class Own(LlamaConfig):
    model_type = "own-llama"
class OwnForCausalLM(LlamaForCausalLM):
    config_class = Own
"""


def test_a_models_own_code_runs_where_it_is_trusted_alone_and_that_is_shouted(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder, mark = save_tiny(tmp_path / "own"), tmp_path / "ran"
    config = json.loads((folder / "config.json").read_text())
    own = {"model_type": "own-llama", "architectures": ["OwnForCausalLM"]}
    own["auto_map"] = {"AutoConfig": "own_code.Own", "AutoModelForCausalLM": "own_code.OwnForCausalLM"}  # type: ignore[assignment]
    (folder / "config.json").write_text(json.dumps({**config, **own}))
    (folder / "own_code.py").write_text(REMOTE.format(mark=str(mark)))
    with pytest.raises(UsageError, match="trust_remote_code"):
        load_model(str(folder))
    assert not mark.exists() and "WARNING" not in capfd.readouterr().err
    load_model(str(folder), trust_remote_code=True)
    said = capfd.readouterr().err
    assert mark.exists() and f"WARNING: trust_remote_code is ON: code that came with {str(folder)!r}" in said


# --- folders of lm-eval tasks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.yaml", "task: a\nprocess_docs: !function own.process\n", "asks for the function 'own.process'"),
        ("deep/b.yaml", "task: b\nmetric_list:\n  - metric: !function own.metric\n", "own.metric"),
        ("c.yaml", "include: base\ntask: c\n", "own.base"),
        ("d.yaml", "include: ../outside.yaml\ntask: d\n", "outside of the folder"),
        ("e.yaml", "include: [/etc/hostname]\ntask: e\n", "outside of the folder"),
        ("f.yaml", "task: !!python/object/apply:os.system ['true']\n", "not YAML"),
        ("g.yaml", "include: absent\ntask: g\n", "No such file"),
    ],
)
def test_task_files_name_no_function_and_no_file_elsewhere(tmp_path: Path, name: str, content: str, said: str) -> None:
    folder, mark = tmp_path / "suite", tmp_path / "ran"
    (folder / "deep").mkdir(parents=True)
    (folder / "own.py").write_text(f"import pathlib; pathlib.Path({str(mark)!r}).write_text('ran')")
    (folder / "base").write_text("doc_to_text: !function own.base\n")
    (tmp_path / "outside.yaml").write_text("x: 1\n")
    (folder / name).write_text(content)
    with pytest.raises(UsageError, match=said.replace("(", r"\(")):
        Catalogue(None).load(str(folder))
    assert not mark.exists()


def test_files_that_include_each_other_end(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("include: b\n")
    (tmp_path / "b").write_text("include: [a.yaml, b]\n")
    check_task_folder(tmp_path)


@pytest.mark.parametrize(
    "template", ["{{ ''.__class__.__mro__ }}", "{{ q.__init__.__globals__ }}", "{{ cycler.__init__ }}"]
)
def test_templates_of_tasks_reach_no_python(template: str) -> None:
    from jinja2.exceptions import SecurityError
    from lm_eval import utils

    sandbox_templates()
    assert utils.apply_template("{{ q | trim }} {{ c[0] }}", {"q": " a ", "c": ["b"]}) == "a b"
    with pytest.raises(SecurityError):
        utils.apply_template(template + "{{ (" + template[3:-3] + ")() }}", {"q": "a"})


# --- data sets ------------------------------------------------------------------------------------------------------


@pytest.fixture
def secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    path = tmp_path / "secret.jsonl"
    path.write_text("".join(f'{{"prompt": "secret {i}", "completion": " s"}}\n' for i in range(9)))
    return path


@pytest.mark.parametrize("files", ["../secret.jsonl", "{absolute}"])
def test_a_data_sets_description_cannot_name_files_elsewhere(tmp_path: Path, secret: Path, files: str) -> None:
    named = files.format(absolute=secret)
    (tmp_path / "data/README.md").write_text(
        f"---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: {named}\n---\n"
    )
    with pytest.raises(UsageError, match="names the file .*secret.jsonl', which is not part of it"):
        load_task(TaskConfig(name="t", format="hub", train=str(tmp_path / "data"), columns=ColumnMapping()))


def test_a_saved_data_set_cannot_name_files_elsewhere(tmp_path: Path, secret: Path) -> None:
    from datasets import Dataset

    Dataset.from_dict({"prompt": ["a"] * 9, "completion": ["b"] * 9}).save_to_disk(str(tmp_path / "other"))
    Dataset.from_dict({"prompt": ["c"] * 9, "completion": ["d"] * 9}).save_to_disk(str(tmp_path / "saved"))
    state = tmp_path / "saved/state.json"
    content = json.loads(state.read_text())
    assert load_task(TaskConfig(name="t", format="hub", train=str(tmp_path / "saved"))).train
    content["_data_files"] = [{"filename": "../other/data-00000-of-00001.arrow"}]
    state.write_text(json.dumps(content))
    with pytest.raises(UsageError, match="which is not part of it"):
        load_task(TaskConfig(name="t", format="hub", train=str(tmp_path / "saved")))


# --- the report, in a browser ---------------------------------------------------------------------------------------


def hostile_study(folder: Path) -> Path:
    store = write_study(
        folder,
        mitigations=["naive", "lora:r=8"],
        tasks=list(HOSTILE[:4]),
        capabilities=list(HOSTILE[4:8]),
        seeds=[0, 1],
        failed={("naive", 1): " ".join(HOSTILE)},
    )
    for record in store.records():
        record.tasks[0].notes = {text: text for text in HOSTILE}
        record.provenance = {text: text for text in HOSTILE} | {"command": ["forgetting", *HOSTILE]}
        store.save(record)
    return store.folder


@pytest.mark.skipif(CHROME is None, reason=NO_CHROME)
def test_no_script_of_what_models_and_data_wrote_runs_in_a_browser(tmp_path: Path) -> None:
    from forgetting.report import write_report

    control = tmp_path / "control.html"
    control.write_text(f"<title>control</title><body><script>{MARK}</script>")
    assert "<title>it-ran</title>" in shown(control, tmp_path / "profile")  # the browser runs scripts
    report = shown(write_report(hostile_study(tmp_path / "study")).page, tmp_path / "profile")
    title = report.split("<title>")[1].split("</title>")[0]
    assert title == "a-study · forgetting" and "it-ran</title>" not in report
    assert "<script" not in report and "TEMPLATETEMPLATE" not in report and "&lt;script&gt;" in report


@pytest.mark.skipif(CHROME is None, reason=NO_CHROME)
def test_of_an_audits_page_only_its_own_script_runs_in_a_browser(tmp_path: Path) -> None:
    from forgetting.audit.page import render_page
    from forgetting.audit.write import item_rows

    audit = hostile_audit(tmp_path, HOSTILE)
    page = tmp_path / "audit.html"
    page.write_text(render_page(audit.verdict, item_rows(audit)), encoding="utf-8")
    report = shown(page, tmp_path / "profile")
    assert "it-ran</title>" not in report and "TEMPLATETEMPLATE" not in report and "&lt;script&gt;" in report
    assert f"{2 * len(HOSTILE)} of {2 * len(HOSTILE)} shown" in report, "which the page's own script wrote"
