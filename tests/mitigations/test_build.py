"""Mitigation strings: parsed, checked, and one line for what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from forgetting.errors import UsageError
from forgetting.mitigations import Compose, build_mitigation, mitigation_names, parse_mitigation


def test_parts_options_and_order() -> None:
    assert parse_mitigation("replay:fraction=0.01,source=both+ewc:strength=1e+3+naive") == [
        ("replay", {"fraction": "0.01", "source": "both"}),
        ("ewc", {"strength": "1e+3"}),
        ("naive", {}),
    ]
    built = build_mitigation("low_lr:factor=0.5+few_steps")
    assert isinstance(built, Compose)
    assert [type(part).__name__ for part in built.parts] == ["LowLR", "FewSteps"]


def test_every_file_is_registered() -> None:
    folder = Path(__file__).parents[2] / "forgetting" / "mitigations"
    files = {path.stem for path in folder.glob("*.py")} - {"__init__", "base"}
    assert set(mitigation_names()) == files and len(files) >= 8


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("repley", "unknown mitigation 'repley'; did you mean 'replay'?"),
        ("ewc:strenght=3", "unknown option 'strenght'; did you mean 'strength'?"),
        ("ewc:strength=-1", "strength = '-1': Input should be greater than or equal to 0"),
        ("ewc:strength=much", "strength = 'much'"),
        ("ewc:estimator=exactly", "estimator = 'exactly'"),
        ("replay:fraction=1", "fraction = '1': Input should be less than 1"),
        ("replay:fraction", "'fraction' is not option=value"),
        ("replay:fraction=", "'fraction=' is not option=value"),
        ("replay:fraction=.1,fraction=.2", "option 'fraction' is given twice"),
        ("", "a part has no name"),
        ("naive+", "a part has no name"),
        ("early_stopping:max_increase=1", "max_increase has no meaning with metric=task"),
        ("early_stopping:metric=pretraining,patience=2", "patience has no meaning with metric=pretraining"),
        ("replay:buffer_size=9", "buffer_size: needs source=earlier or source=both"),
        ("ewc:decay=0.5", "decay=0.5 needs mode=online"),
        ("ewc:samples=2,estimator=empirical", "samples=2 needs estimator=sample"),
        ("ewc:mode=kfac,estimator=batched", "mode=kfac needs estimator=sample or empirical, not batched"),
        ("ewc+ewc", "'ewc' occurs twice"),
        ("low_lr:factor=0", "factor = '0'"),
        ("few_steps:fraction=2", "fraction = '2'"),
        ("freeze:pattern=[", "is not a regular expression"),
        ("lora:r=0", "r = '0'"),
        ("freeze+lora", "write lora+freeze"),
        ("ewc+lora:merge=false", "write lora+ewc"),
        ("lora+ewc", "write lora:merge=false+ewc"),
        ("lora:init=milora", "init = 'milora'"),
        ("lora:init=mica,dora=true", "init=mica fixes B, and dora=true trains it"),
        ("lora:r=3,init=orthogonal", "init=orthogonal needs an even r, not 3"),
        ("task_lora:init=pissa", "init = 'pissa'"),
        ("task_lora:merge=true", "unknown option 'merge'"),
        ("ia3:feedforward=down_proj", "feedforward needs target"),
        ("ia3:target=v_proj,feedforward=up_proj", "feedforward=up_proj is not in target=v_proj"),
        ("osf:preserve=1", "preserve = '1': Input should be less than 1"),
        ("prompt_tuning:length=0", "length = '0'"),
        ("prefix_tuning:projection=8,text=a", "a projected prefix starts from random weights"),
        ("lora+ia3", "'lora': stands beside 'ia3'; give one adapter method"),
        ("prompt_tuning+low_lr+task_lora", "'prompt_tuning': stands beside 'task_lora'"),
        ("freeze+prefix_tuning", "write prefix_tuning+freeze"),
        ("task_lora+ewc", "'task_lora' begins one per task"),
        ("o_lora+ewc", "'o_lora' begins one per task"),
        ("osf+ewc", "write osf:merge=false+ewc"),
        ("ia3:merge=false+ewc", "write ia3+ewc:estimator=batched"),
        ("lora:merge=false,dora=true+ewc:mode=kfac", "no rule for what 'lora' trains"),
        ("prompt_tuning+ewc", "no rule for what 'prompt_tuning' trains; leave one out"),
        ("in_context+replay", "'in_context': trains nothing, so that 'replay' beside it does nothing"),
        ("in_context:shots=-1", "shots = '-1'"),
        ("ia3+wise_ft", "mixing the factors of 'ia3' does not mix their product"),
        ("single_task+osf", "'single_task': stands before 'osf', which it would not reset; write osf+single_task"),
        ("prompt_tuning+bitfit", "'prompt_tuning' adapters alone"),
        ("o_lora+feature_extraction", "'o_lora' adapters alone"),
        ("task_lora+ema", "'ema': needs an adapter that lasts; 'task_lora' begins one per task"),
        ("ema+prefix_tuning", "write prefix_tuning+ema"),
        ("./none.py", "no such file"),
    ],
)
def test_bad_mitigations_are_one_line(text: str, said: str) -> None:
    with pytest.raises(UsageError) as error:
        build_mitigation(text)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "from pydantic import Field\n"
        "from forgetting import Mitigation, Options\n"
        "class MineOptions(Options):\n    strength: float = Field(default=1.0, description='how much')\n"
        "class Mine(Mitigation[MineOptions]):\n    Options = MineOptions\n"
    )
    built = build_mitigation(f"{path}:strength=2+low_lr")
    assert isinstance(built, Compose) and built.parts[0].options.model_dump() == {"strength": 2.0}
    path.write_text("x = 1\n")
    with pytest.raises(UsageError, match="defines 0 subclasses"):
        build_mitigation(str(path))
    path.write_text("import no_such_module\n")
    with pytest.raises(UsageError, match="cannot be imported: ModuleNotFoundError"):
        build_mitigation(str(path))
