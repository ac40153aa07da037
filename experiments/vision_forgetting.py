"""A real pretrained image classifier learns MNIST and changed images, and forgets CIFAR-10.

Model: ResNet-20 (He et al. 2016, arXiv 1512.03385; shortcuts without parameters) pretrained on CIFAR-10 by Idelbayev
(akamaster/pytorch_resnet_cifar10, BSD). Sequence: MNIST (a part of its test images, resized to 32×32), then CIFAR-10
upside down, then in negative. Each task has a new head; the pretrained head is kept, and the capability is its accuracy
on held-out CIFAR-10 images. Naive fine-tuning, feature extraction (everything but the new heads frozen, batch norms'
statistics too), freezing the first blocks, a lower rate, replay of CIFAR-10 images and EWC are compared; settings were
not tuned, so this shows forgetting, and is no comparison of methods.

Command (the data are not part of the package)::

    python experiments/vision_forgetting.py --data ../shared/data

``--data`` has resnet20_cifar10 (safetensors and npz) and mnist_t10k (idx.gz).
"""

from __future__ import annotations

import argparse
import gzip
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from transformers.utils.generic import ModelOutput

from forgetting.config import (
    EvaluationConfig,
    PretrainingConfig,
    SequenceConfig,
    StudyConfig,
    TaskConfig,
    TrainingConfig,
)
from forgetting.display import print_outcome
from forgetting.report import write_report
from forgetting.results import ResultStore
from forgetting.studies import run_grids

OUTPUT = Path("results/vision_forgetting")
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
METHODS = {
    "naive": "naive",
    "feature extraction": "freeze:pattern=^base",
    "first two stages frozen": "freeze:pattern=^base.(conv1|bn1|layer[12])",
    "low rate (× 0.1)": "low_lr:factor=0.1",
    "replay (30 %)": "replay:fraction=0.3",
    "EWC": "ewc:strength=1000",
}


class ResNet20Config(transformers.PretrainedConfig):
    """The configuration: classes only."""

    model_type = "cifar_resnet20"
    num_channels: int = 3


class Block(nn.Module):
    """Two 3×3 convolutions; where the width doubles, the shortcut skips every other pixel and pads with zeros."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        stride = width // width_in
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.stride, self.padding = stride, (width - width_in) // 2

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C′, H′, W′)."""
        out = functional.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        shortcut = x[:, :, :: self.stride, :: self.stride]
        shortcut = functional.pad(shortcut, (0, 0, 0, 0, self.padding, self.padding))
        return functional.relu(out + shortcut)


class ResNet20ForImageClassification(transformers.PreTrainedModel):
    """ResNet-20 with the names of akamaster's weights."""

    config_class = ResNet20Config
    main_input_name = "pixel_values"

    def __init__(self, config: ResNet20Config) -> None:
        super().__init__(config)
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        for stage, (width_in, width) in enumerate([(16, 16), (16, 32), (32, 64)], start=1):
            blocks = [Block(width_in if i == 0 else width, width) for i in range(3)]
            self.add_module(f"layer{stage}", nn.ModuleList(blocks))
        self.linear = nn.Linear(64, int(config.num_labels or 0))
        self.post_init()

    def forward(self, pixel_values: Tensor, **_: Any) -> ModelOutput:
        """(B, 3, 32, 32) to logits (B, 10)."""
        x = functional.relu(self.bn1(self.conv1(pixel_values)))
        for stage in (1, 2, 3):
            for block in self.get_submodule(f"layer{stage}").children():
                x = block(x)
        return ModelOutput(logits=self.linear(x.mean((2, 3))))


transformers.AutoConfig.register(ResNet20Config.model_type, ResNet20Config)
transformers.AutoModelForImageClassification.register(ResNet20Config, ResNet20ForImageClassification)


def convert(weights: Path, folder: Path) -> None:
    """Write the weights as a transformers folder with an image processor."""
    model = ResNet20ForImageClassification(ResNet20Config(id2label=dict(enumerate(CLASSES))))
    missing, unexpected = model.load_state_dict(load_file(weights), strict=False)
    assert not unexpected and all(name.endswith("num_batches_tracked") for name in missing), (missing, unexpected)
    model.save_pretrained(folder)
    transformers.ViTImageProcessor(do_resize=False, image_mean=MEAN, image_std=STD).save_pretrained(folder)


def mnist(folder: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """MNIST's test images, (N, 32, 32), and labels."""
    with gzip.open(folder / "t10k-images-idx3-ubyte.gz") as file:
        images = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 1, 28, 28)
    with gzip.open(folder / "t10k-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8).astype(np.int64)
    resized = functional.interpolate(torch.tensor(images).float(), size=32, mode="bilinear", align_corners=False)
    return resized[:, 0].round().to(torch.uint8).numpy(), labels


def write_data(data: Path, folder: Path) -> None:
    """Write the npz files: pretraining, held-out, and train and test of each task; no image is in two of them."""
    source = data / "resnet20_cifar10"
    with np.load(source / "cifar10_train_8000.npz") as train, np.load(source / "cifar10_test_2000.npz") as test:
        images, labels = train["images"], train["labels"]
        test_images, test_labels = test["images"], test["labels"]
    rng = np.random.default_rng(0)
    order, test_order = rng.permutation(len(images)), rng.permutation(len(test_images))
    digits, digit_labels = mnist(data / "mnist_t10k")
    digit_order = rng.permutation(len(digits))

    def save(name: str, pixels: NDArray[np.uint8], classes: NDArray[np.int64], chosen: NDArray[np.int64]) -> None:
        np.savez(folder / f"{name}.npz", images=np.ascontiguousarray(pixels[chosen]), labels=classes[chosen])

    save("pretraining", images, labels, order[:3000])
    save("held_out", test_images, test_labels, test_order[:800])
    save("mnist_train", digits, digit_labels, digit_order[:3000])
    save("mnist_test", digits, digit_labels, digit_order[3000:3400])
    save("upside_down_train", images[:, ::-1], labels, order[3000:5500])
    save("upside_down_test", test_images[:, ::-1], test_labels, test_order[800:1200])
    save("negative_train", 255 - images, labels, order[5500:])
    save("negative_test", 255 - test_images, test_labels, test_order[1200:1600])


def study(folder: Path, steps: int, seeds: int) -> StudyConfig:
    """The study."""
    digits = tuple(str(i) for i in range(10))
    tasks = tuple(
        TaskConfig(
            name=name.replace("_", " "),
            format="images",
            train=str(folder / f"{name}_train.npz"),
            test=str(folder / f"{name}_test.npz"),
            labels=labels,
        )
        for name, labels in (("mnist", digits), ("upside_down", CLASSES), ("negative", CLASSES))
    )
    return StudyConfig(
        name="vision_forgetting",
        model=str(folder / "model"),
        sequence=SequenceConfig(name="mnist-and-changed-cifar10", tasks=tasks, scenario="task"),
        mitigations=tuple(METHODS.values()),
        seeds=tuple(range(seeds)),
        training=TrainingConfig(learning_rate=1e-3, steps=steps, batch_size=32),
        evaluation=EvaluationConfig(batch_size=200, drift_tokens=200),
        pretraining=PretrainingConfig(
            source=str(folder / "pretraining.npz"),
            documents=3000,
            held_out_documents=800,
            held_out=(str(folder / "held_out.npz"),),
        ),
    )


def draw(store: ResultStore, output: Path) -> None:
    """Accuracy on CIFAR-10 by the kept head after each task, and each task's accuracy when it was learned."""
    import seaborn

    from forgetting.report.style import legend_below, new_canvas, panels, save, styled

    names = {text: name for name, text in METHODS.items()}
    records = [record for record in store.records() if record.status == "finished"]
    seeds = len({record.config.seed for record in records})
    column = next(i for i, info in enumerate(records[0].capabilities) if info.name == "held_out_images")
    tasks = [task.name for task in records[0].tasks]
    with styled():
        canvas = new_canvas(7.2, 3.9)
        left, right = panels(canvas, 2, 2)
        colors = dict(zip(METHODS, seaborn.color_palette("colorblind", len(METHODS)), strict=True))
        markers = dict(zip(METHODS, "osD^vP", strict=True))
        lines = []
        for name in METHODS:
            runs = [record for record in records if names[record.config.mitigation] == name]
            if not runs:
                continue
            kept = 100 * np.array([[row.G[column] for row in run.rows] for run in runs])
            learned = 100 * np.array([[run.R[j + 1][j] for j in range(len(tasks))] for run in runs])
            style: dict[str, Any] = {"color": colors[name], "marker": markers[name], "markersize": 5}
            lines.append(left.plot(range(len(tasks) + 1), kept.mean(0), label=name, **style)[0])
            right.plot(range(len(tasks)), learned.mean(0), **style)
            if len(runs) > 1:
                for axis, values in ((left, kept), (right, learned)):
                    steps = range(values.shape[1])
                    axis.fill_between(steps, values.min(0), values.max(0), color=colors[name], alpha=0.15, lw=0)
        left.axhline(10, color="black", linestyle=":", linewidth=1)
        left.set_ylim(0, 100)
        right.set_ylim(0, 100)
        left.set_xticks(range(len(tasks) + 1), ["base", *(f"after\n{task}" for task in tasks)])
        right.set_xticks(range(len(tasks)), tasks)
        left.set_title("kept: CIFAR-10, the pretrained head")
        right.set_title("learned: each task, just after it")
        left.set_ylabel("accuracy (%)")
        band = f"mean and range of {seeds} seeds" if seeds > 1 else "one seed"
        canvas.suptitle(f"ResNet-20 learns and forgets ({band}; dotted: chance)")
        legend_below(canvas, lines, [str(line.get_label()) for line in lines])
        save(canvas, output, "vision_forgetting", "ResNet-20 learns and forgets", band)


def main() -> None:
    """Convert, run (or continue), report, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with resnet20_cifar10 and mnist_t10k")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    folder = Path(tempfile.gettempdir()) / "forgetting-vision"  # the same in every start, so that a study continues
    (folder / "model").mkdir(parents=True, exist_ok=True)
    convert(options.data / "resnet20_cifar10" / "resnet20-12fca82f.safetensors", folder / "model")
    write_data(options.data, folder)
    run_grids({options.output: study(folder, options.steps, options.seeds)}, workers=1)
    print_outcome(options.output, write_report(options.output))
    draw(ResultStore(options.output), options.output)


if __name__ == "__main__":
    main()
