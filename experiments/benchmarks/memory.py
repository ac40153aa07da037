"""Does ``forgetting plan`` say what a run needs? Estimated against measured peaks of the package's own training.

Command::

    python experiments/benchmarks/memory.py

Each case is a process of its own on the CPU: a Llama of random weights learns two tasks of two steps each through the
package's training loop, rows filled to ``max_length``. Measured is the growth of the resident set's peak (VmHWM, reset
before) over what is there when everything but the run's own copy of the model is loaded and a first step was taken, so
that libraries are loaded too. Memory that is freed is given back at once (glibc's threshold for mmap is set low), one
thread. The estimate is that of one device.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

OUTPUT = Path(__file__).resolve().parents[2] / "results" / "benchmarks" / "memory"
LLAMA: dict[str, dict[str, Any]] = {
    "small": {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6, "num_attention_heads": 4},
    "wide": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 4, "num_attention_heads": 12},
}
CASES: list[dict[str, Any]] = [
    {"shape": "small", "mitigation": "naive", "batch": 16, "length": 128},
    {"shape": "small", "mitigation": "naive", "batch": 16, "length": 128, "checkpointing": True},
    {"shape": "small", "mitigation": "naive", "batch": 16, "length": 128, "accumulation": 2},
    {"shape": "small", "mitigation": "lora:r=8", "batch": 16, "length": 128},
    {"shape": "small", "mitigation": "freeze:first=3,embeddings=true", "batch": 16, "length": 128},
    {"shape": "small", "mitigation": "lwf", "batch": 16, "length": 128},
    {"shape": "wide", "mitigation": "naive", "batch": 4, "length": 128},
    {"shape": "wide", "mitigation": "l2sp", "batch": 4, "length": 128},
    {"shape": "wide", "mitigation": "ewc:examples=8", "batch": 4, "length": 128},
    {"shape": "wide", "mitigation": "si", "batch": 4, "length": 128},
    {"shape": "wide", "mitigation": "naive", "batch": 4, "length": 128, "precision": "bf16"},
]


def measure(case: dict[str, Any]) -> dict[str, Any]:
    """Measure a case in this process, and estimate it."""
    import copy
    import ctypes

    import torch
    import transformers

    from forgetting.config import (
        EvaluationConfig,
        PretrainingConfig,
        RunConfig,
        SequenceConfig,
        TaskConfig,
        TrainingConfig,
    )
    from forgetting.mitigations import build_mitigation
    from forgetting.models import embedded_path
    from forgetting.planning.memory import plan_memory
    from forgetting.results import ResultStore
    from forgetting.run import prepare, run_context, train_task

    def ignore(step: int, steps: int) -> None:
        pass

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        tokenizer = transformers.AutoTokenizer.from_pretrained(embedded_path("micro"))
        config = transformers.LlamaConfig(
            **LLAMA[case["shape"]],
            vocab_size=len(tokenizer),
            max_position_embeddings=1024,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        torch.manual_seed(0)
        transformers.LlamaForCausalLM(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        steps = 2 * case.get("accumulation", 1)
        data = Path(scratch) / "task.jsonl"
        words = " ".join(["the bird sees the stone"] * case["length"])
        rows = [{"prompt": f"{i} {words}", "completion": " a b c"} for i in range(steps * case["batch"] + 10)]
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        text = Path(scratch) / "text.txt"
        text.write_text("\n\n".join(f"{i} {words}" for i in range(40)))
        training = TrainingConfig(
            steps=2,
            batch_size=case["batch"],
            max_length=case["length"],
            gradient_accumulation=case.get("accumulation", 1),
            gradient_checkpointing=case.get("checkpointing", False),
            precision=case.get("precision", "fp32"),
        )
        run = RunConfig(
            model=str(folder),
            sequence=SequenceConfig(
                name="memory",
                tasks=tuple(
                    TaskConfig(name=name, train=str(data), validation_size=2, test_size=2)
                    for name in ("first", "second")
                ),
            ),
            mitigation=case["mitigation"],
            seed=0,
            training=training,
            evaluation=EvaluationConfig(suite=("micro",), limit=1),
            pretraining=PretrainingConfig(
                source=str(text), documents=20, held_out_documents=4, max_length=case["length"]
            ),
        )
        setting = prepare(run, ResultStore(Path(scratch) / "study"))
        estimated = plan_memory(config, training, case["mitigation"], (1,))
        warm = run.model_copy(update={"mitigation": "naive", "training": training.model_copy(update={"steps": 1})})
        naive = build_mitigation("naive")
        context = run_context(warm, setting)
        train_task(warm, setting, naive, naive.setup(copy.deepcopy(setting.base.model), context), 0, ignore)
        mitigation = build_mitigation(run.mitigation)
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        before = _status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        model = mitigation.setup(copy.deepcopy(setting.base.model), run_context(run, setting))
        for position in range(2):
            model, _ = train_task(run, setting, mitigation, model, position, ignore)
        measured = _status("VmHWM") - before
    need = estimated["devices"][0]
    return {
        **case,
        "parameters": estimated["parameters"],
        "trained": estimated["trained"],
        "measured_bytes": measured,
        "estimated_bytes": round(need["peak"]),
        "ratio": round(need["peak"] / measured, 3),
        "estimate": {key: round(value) for key, value in need.items() if isinstance(value, float)},
    }


def _status(key: str) -> int:
    """A value of /proc/self/status, in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024


def main() -> None:
    """Measure all cases, a process each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--case", type=int, help="measure this one here, and print it")
    options = parser.parse_args()
    if options.case is not None:
        print(json.dumps(measure(CASES[options.case])))
        return
    from forgetting.provenance import provenance
    from forgetting.results import write_atomically

    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    found = []
    for number in range(len(CASES)):
        command = [sys.executable, str(Path(__file__).resolve()), "--case", str(number)]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
        print(json.dumps({key: value for key, value in found[-1].items() if key != "estimate"}), flush=True)
    content = {"command": "python experiments/benchmarks/memory.py", "cases": found, "provenance": provenance()}
    write_atomically(options.output / "memory.json", (json.dumps(content, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
