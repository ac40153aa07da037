"""The Fisher information: what it costs, what EWC's step costs, which estimator to take; and the classic methods."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd

from forgetting.analysis.stats import paired_difference
from forgetting.report.cells import number, spread
from parts.latex import Output, code, escape, power, require
from parts.sources import constant, read_json

OWN_PRODUCTS = "ours, torch's products"
EXACT = ("ours", "loop", "vmap", "einsum")
METHODS = {
    "ours": "ours",
    OWN_PRODUCTS: "ours, torch's products",
    "plain, our products": "the plain step, our products",
    "ours sample": "ours, sampled labels",
    "loop": "batch size 1",
    "vmap": r"\texttt{torch.func} vmap",
    "einsum": "our capture, einsum",
    "opacus": "Opacus (no RMSNorm, no cross terms)",
    "backpack": r"BackPACK (\texttt{nn.Linear} only)",
    "avalanche": "Avalanche (squares batch means)",
}
"""Of the benchmark, as the table names them."""


def cost(results: Path, out: Output) -> None:
    """Time, error and memory of the diagonal Fisher on a CPU."""
    source = "results/benchmarks/fisher/fisher_cpu.json"
    content = read_json(results / "benchmarks/fisher/fisher_cpu.json")
    cells: dict[str, dict[str, dict[str, float | None]]] = content["results"]
    memory = content["memory_bytes_llama_B8_T256"]
    order = ["llama B16 T64", "llama B8 T256", "llama B32 T16", "gpt2 tied B16 T64"]
    require(set(order) == set(cells), "the benchmark has the four settings of the table")

    def ratio(method: str, setting: str) -> float:
        return float(cells[setting][method]["ratio"] or math.nan)

    def error(method: str) -> float:
        return max((float(cells[s][method]["error"] or 0.0) for s in order), default=0.0)

    def shown_error(method: str) -> str:
        if cells[order[0]][method]["error"] is None:
            return ""
        return power(error(method)) if error(method) < 0.01 else number(error(method), 2)

    ours = [ratio("ours", setting) for setting in order]
    fastest = [setting for setting in order if min(EXACT, key=lambda method: ratio(method, setting)) == "ours"]
    require(fastest == order, "ours is the fastest exact way in all settings")
    require(max(ours) < 1, "ours costs less than a plain step")
    out.macro("FisherSettings", len(order), source)
    out.macro("FisherRepeats", int(content["command"].split("--repeats ")[1].split()[0]), source)
    out.macro("FisherOursLow", min(ours), source, 2)
    out.macro("FisherOursHigh", max(ours), source, 2)
    first = cells[order[0]]["ours"]
    out.macro("FisherRepeatLow", float(first["lowest"] or math.nan), source, 2)
    out.macro("FisherRepeatHigh", float(first["highest"] or math.nan), source, 2)
    same = [ratio(OWN_PRODUCTS, setting) for setting in order]
    out.macro("FisherSameLow", min(same), source, 2)
    out.macro("FisherSameHigh", max(same), source, 2)
    faster = [ratio("plain, our products", setting) for setting in order]
    out.macro("FisherPlainLow", min(faster), source, 2)
    out.macro("FisherPlainHigh", max(faster), source, 2)
    out.macro("FisherOursError", power(error("ours")), source)
    out.macro("FisherAvalancheError", error("avalanche"), source, 2)
    out.macro("FisherVmapMemory", memory["vmap"] / memory["plain"], source, 2)
    out.macro("FisherOursMemory", memory["ours"] / memory["plain"], source, 2)
    rows = [
        [
            METHODS[method],
            *(number(ratio(method, setting), 2) for setting in order),
            shown_error(method),
            number(memory[method] / memory["plain"], 2),
        ]
        for method in METHODS
    ]
    out.table(
        "fisher",
        "lrrrrrr",
        [
            "",
            *(escape(setting.replace("gpt2 tied", "GPT-2").replace("llama", "Llama")) for setting in order),
            "error",
            "memory",
        ],
        rows,
    )


def gpu(results: Path, out: Output) -> None:
    """The same on a GPU, from the Triton kernel."""
    source = "results/benchmarks/fisher/fisher_gpu.json"
    content = read_json(results / "benchmarks/fisher/fisher_gpu.json")
    ratios = [entry["ratio"] for entry in content["models"].values()]
    memory = [entry["memory_ratio"] for entry in content["models"].values()]
    same = all(entry["deterministic"] for entry in content["kernel"])
    out.macro("GpuBits", "the same" if same else "different", source)
    out.macro("GpuName", escape(content["gpu"]), source)
    out.macro("GpuRatioLow", float(min(ratios)), source, 2)
    out.macro("GpuRatioHigh", float(max(ratios)), source, 2)
    out.macro("GpuMemoryLow", float(min(memory)), source, 2)
    out.macro("GpuMemoryHigh", float(max(memory)), source, 2)
    out.macro("GpuSettings", len(ratios), source)
    out.macro("GpuKernelError", power(max(entry["error"] for entry in content["kernel"])), source)


def ewc_step(results: Path, out: Output) -> None:
    """What a step of EWC costs by the number of protected tasks."""
    source = "results/benchmarks/ewc_step/ewc_step.json"
    content = read_json(results / "benchmarks/ewc_step/ewc_step.json")["results"]
    tasks = sorted({int(name.split()[1]) for name in content if name.startswith("ours ")})
    out.macro("EwcTasks", ", ".join(map(str, tasks[:-1])) + f" and {tasks[-1]}", source)
    out.macro("EwcMostTasks", tasks[-1], source)
    rows = []
    for name, label in (("ours", "ours"), ("avalanche", "Avalanche, separate mode")):
        entries = [content[f"{name} {count}"] for count in tasks]
        out.macro(f"Ewc{name.capitalize()}Ratio", max(float(entry["ratio"]) for entry in entries), source, 2)
        out.macro(f"Ewc{name.capitalize()}Stored", entries[-1]["stored_bytes_per_model_byte"], source, 0)
        rows.append([label, *(number(entry["ratio"], 2) for entry in entries)])
        rows[-1] += [number(entry["stored_bytes_per_model_byte"], 0) for entry in entries]
    require(all(content[f"ours {n}"]["stored_bytes_per_model_byte"] == 2 for n in tasks), "EWC stores two per weight")
    header = ["", *(f"{what}, {count}" for what in ("time", "stored") for count in tasks)]
    out.table("ewc", "l" + 2 * len(tasks) * "r", header, rows)


def variants(results: Path, out: Output) -> None:
    """EWC over its strength with four estimators, beside van de Ven 2025."""
    source = "results/fisher_variants/runs.csv"
    runs = pd.read_csv(results / "fisher_variants/runs.csv")
    summary = pd.read_csv(results / "fisher_variants/summary.csv")
    published: dict[str, tuple[str, str]] = constant("experiments/fisher_variants.py", "PUBLISHED")
    names = [name for name in published if name != "naive"]
    rows = []
    for sequence in dict.fromkeys(summary["sequence"]):
        here, mine = summary[summary["sequence"] == sequence], runs[runs["sequence"] == sequence].set_index("seed")
        naive = mine.loc[mine["variant"] == "naive", "accuracy"]
        chosen: dict[str, float] = {}
        for name in published:
            best = here[here["variant"] == name].sort_values("accuracy").iloc[-1]
            chosen[name] = float(best["strength"])
            shown = escape(spread(100 * best["accuracy"], 100 * (best["high"] - best["accuracy"])))
            gain = ""
            if name != "naive":
                of = mine.loc[(mine["variant"] == name) & (mine["strength"] == chosen[name]), "accuracy"]
                interval = paired_difference(naive.loc[of.index], of, "seeds")
                require(interval.low > 0, f"{name} protects on the {sequence} sequence")
                gain = escape(spread(100 * interval.mean, 100 * interval.half_width))
            theirs = published[name] if sequence == "split" else ("", "")
            strength = "" if name == "naive" else power(chosen[name])
            rows.append([escape(str(sequence)), code(name), strength, shown, gain, *map(escape, theirs)])
        best_ones = [here[here["variant"] == name].sort_values("accuracy").iloc[-1] for name in names]
        spread_of = max(row["accuracy"] for row in best_ones) - min(row["accuracy"] for row in best_ones)
        narrowest = min(row["high"] - row["accuracy"] for row in best_ones)
        require(spread_of < narrowest, f"at their best strengths the estimators differ little on {sequence}")
        out.macro(f"Variants{str(sequence).capitalize()}Ratio", chosen["batched"] / chosen["exact"], source, 0)
        out.macro(f"Variants{str(sequence).capitalize()}Naive", 100 * float(naive.mean()), source)
    out.macro("VariantsRuns", len(runs), source)
    out.macro("VariantsSeeds", runs["seed"].nunique(), source)
    out.macro("VariantsStrengths", int(runs.loc[runs["strength"] > 0, "strength"].nunique()), source)
    out.macro("VariantsCount", len(names), source)
    out.table(
        "variants",
        "llrrrrr",
        ["sequence", "Fisher", r"best $\lambda$", "accuracy", "above naive", "Split MNIST", "Split CIFAR-10"],
        rows,
    )
    out.figure("variants", results / "fisher_variants/fisher_variants.pdf")


def classic(results: Path, out: Output) -> None:
    """The classic methods in three scenarios, beside published values."""
    source = "results/classic_benchmarks/digits/summary.csv"
    table = pd.read_csv(results / "classic_benchmarks/digits/summary.csv")
    rows: dict[tuple[str, str, str], dict[str, Any]] = {
        (row["kind"], row["scenario"], row["method"]): {str(key): value for key, value in row.items()}
        for row in table.to_dict("records")
    }

    def percent(kind: str, scenario: str, method: str) -> str:
        row = rows[kind, scenario, method]
        return escape(spread(100 * row["accuracy"], 50 * (row["high"] - row["low"])))

    ewc, naive = (rows["split", "domain", method] for method in ("ewc", "naive"))
    require(ewc["low"] < naive["accuracy"] < ewc["high"], "EWC's domain-incremental interval holds naive's mean")
    for column in ("accuracy", "published"):
        order = [float(rows["split", scenario, "ewc"][column]) for scenario in ("task", "domain", "class")]
        require(order == sorted(order, reverse=True), f"EWC's scenarios are in the same order ({column})")
    replay = rows["split", "class", "replay"]
    others = [row for key, row in rows.items() if key[:2] == ("split", "class") and key[2] not in ("replay", "joint")]
    require(all(row["high"] < replay["low"] for row in others), "only replay learns classes")
    out.macro("ClassicSeeds", int(table["n"].min()), source)
    out.macro("ClassicDomainEwc", percent("split", "domain", "ewc"), source)
    out.macro("ClassicDomainNaive", percent("split", "domain", "naive"), source)
    out.macro("ClassicClassReplay", percent("split", "class", "replay"), source)
    out.macro("ClassicClassBest", 100 * max(float(row["accuracy"]) for row in others), source)
    beside = [
        [
            escape(f"{kind}, {scenario}"),
            code(method),
            percent(kind, scenario, method),
            percent(kind, scenario, "naive"),
            f"{row['published']:g}",
        ]
        for (kind, scenario, method), row in rows.items()
        if not math.isnan(row["published"])
    ]
    header = ["benchmark", "method", "ours, digits", "naive, digits", "published, Split MNIST"]
    out.table("classic", "llrrr", header, beside)
    out.figure("classic", results / "classic_benchmarks/digits/classic_benchmarks.pdf")
