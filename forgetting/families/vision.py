"""Vision: image classifiers (ResNet, ViT), which keep the head of the classes that they were pretrained on."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from forgetting.errors import UsageError
from forgetting.evaluation.likelihood import evaluating
from forgetting.evaluation.suite import CapabilityScore
from forgetting.families.base import Family
from forgetting.families.labels import Labels
from forgetting.results import CapabilityInfo
from forgetting.tasks.encode import IGNORED, PRETRAINING, TASK, Feature
from forgetting.tasks.images import load_images
from forgetting.tasks.pretraining import OWN, VALIDATION_SHARE, PretrainingText
from forgetting.tasks.scenario import Scenario
from forgetting.tasks.task import Example, Image

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from forgetting.config import EvaluationConfig, PretrainingConfig
    from forgetting.evaluation.feature_drift import FeatureDrift
    from forgetting.families.scoring import HeadScorer
    from forgetting.models import LoadedModel
    from forgetting.tasks.task import Task


class Vision(Family):
    """Images are classified; the capability is the accuracy of the pretrained head on held-out pretraining images."""

    scenario: ClassVar[Scenario | None] = "class"
    reads: ClassVar[str] = "images"

    def prepared(self, loaded: LoadedModel) -> LoadedModel:
        """With heads."""
        from forgetting.families.vision_model import VisionModel

        self.classes = own_classes(loaded.model)
        self.labels = Labels(self.sequence, self.scenario_used, own=self.classes)
        model = VisionModel(loaded.model, self.labels.sizes).to(loaded.model.device)  # type: ignore[arg-type]
        return replace(loaded, model=model.eval())

    def pretraining(self, config: PretrainingConfig, cache_dir: Any) -> PretrainingText:
        """Images of the pretrained classes: the embedded model's digits, or an npz file with the classes' numbers."""
        from forgetting.micro.digits import pretraining_images
        from forgetting.models import EMBEDDED

        source = config.source or ("micro" if self.base.name in EMBEDDED else "self")
        if source == "self":
            raise UsageError(
                f"pretraining.source: 'self' samples text, and model {self.base.name!r} is a classifier of images; "
                "give an npz file with images and labels"
            )
        if source == "micro":
            train, held_out = pretraining_images()
        else:
            found = load_images(source, "pretraining.source", self.classes)
            random.Random(f"pretraining-{config.seed}").shuffle(found)
            held = max(1, min(config.held_out_documents, len(found) // 5))
            held_out, train = found[:held], found[held:]
        train, held_out = train[: config.documents], held_out[: config.held_out_documents]
        columns = {OWN: held_out}
        for path in config.held_out:
            name = path.rsplit("/", 1)[-1].removesuffix(".npz")
            columns[name] = load_images(path, "pretraining.held_out", self.classes)[: config.held_out_documents]
        cut = max(1, round(VALIDATION_SHARE * len(train)))
        notes: dict[str, int | str] = {"source": source, "seed": config.seed, "train": len(train) - cut}
        notes |= {"validation": cut} | {f"held_out_{name}": len(images) for name, images in columns.items()}
        return PretrainingText(train[cut:], train[:cut], columns, notes)

    def encode(self, task: Task, examples: Sequence[Example], max_length: int) -> list[Feature]:
        """Images and classes."""
        labels = [self.labels.target(task.name, example.completion) for example in examples]
        return self._features(examples, labels, self.labels.head(task.name), TASK)

    def encode_pretraining(self, documents: Sequence[Any], max_length: int) -> list[Feature]:
        """Images and classes of the pretrained head."""
        return own_features(self.tokenizer, self.base.model, documents)

    def _features(self, examples: Sequence[Example], labels: list[int], head: int, source: int) -> list[Feature]:
        return image_features(self.tokenizer, self.base.model, examples, labels, head, source)

    def scorer(self, task: Task, batch_size: int, max_length: int) -> HeadScorer:
        """By the head's classes, among those that the scenario leaves open."""
        from forgetting.families.scoring import HeadScorer

        features = self.encode(task, task.test, max_length)
        return HeadScorer(task, features, self.labels, self.tokenizer, batch_size)

    def capabilities(self, config: EvaluationConfig, pretraining: PretrainingText) -> HeldOutImages:
        """A column per text of held-out images."""
        if config.suite != ("micro",):
            raise UsageError(
                f"evaluation.suite: {', '.join(config.suite)!r} is of text; a vision model's capability is its "
                "accuracy on pretraining.held_out images, leave it out"
            )
        stop = None if config.limit is None else config.offset + config.limit
        columns = {
            name: own_features(self.tokenizer, self.base.model, examples[config.offset : stop])
            for name, examples in pretraining.held_out.items()
        }
        return HeldOutImages(columns, self.classes)

    def drift(self, config: EvaluationConfig, pretraining: PretrainingText, max_length: int) -> FeatureDrift:
        """Of the pretrained head's predictions."""
        from forgetting.evaluation.feature_drift import FeatureDrift

        return FeatureDrift(
            self.base.model,
            self.tokenizer,
            pretraining.held_out,
            lambda documents: self.encode_pretraining(documents, max_length),
            max_tokens=config.drift_tokens,
            batch_size=config.batch_size,
            token_of=None,
        )


@dataclass(frozen=True)
class HeldOutImages:
    """Accuracy of the pretrained head on held-out images of its own classes; it is told that they are of these.

    Attributes:
        columns: Features by name.
        classes: The pretrained classes.
    """

    columns: dict[str, list[Feature]]
    classes: tuple[str, ...]

    def capabilities(self) -> list[CapabilityInfo]:
        """The columns of G."""
        chance = 1 / len(self.classes)
        return [
            CapabilityInfo(name=f"{name}_images", metric="acc", chance=chance, n=len(features), version="1")
            for name, features in self.columns.items()
        ]

    def evaluate(self, model: PreTrainedModel, tokenizer: Any, batch_size: int = 64) -> dict[str, CapabilityScore]:
        """Score a model."""
        from forgetting.families.scoring import predictions
        from forgetting.trainer import padded_batches

        scores = {}
        with evaluating(model):
            for name, features in self.columns.items():
                items: list[float] = []
                for batch in padded_batches(features, tokenizer, batch_size):
                    logits, labels = predictions(model, batch)
                    items += (logits.argmax(1) == labels).double().tolist()
                scores[f"{name}_images"] = CapabilityScore(float(np.mean(items)), items)
        return scores


def own_classes(model: PreTrainedModel) -> tuple[str, ...]:
    """The names of the pretrained classes, in the order of the model's outputs."""
    names: dict[Any, str] = dict(model.config.id2label or {})
    return tuple(str(names.get(i, i)) for i in range(int(model.config.num_labels or 0)))


def own_features(processor: Any, model: PreTrainedModel, examples: Sequence[Example]) -> list[Feature]:
    """Features of examples of the pretrained classes."""
    index = {name: i for i, name in enumerate(own_classes(model))}
    return image_features(processor, model, examples, [index[e.completion] for e in examples], 0, PRETRAINING)


def image_features(
    processor: Any, model: PreTrainedModel, examples: Sequence[Example], labels: list[int], head: int, source: int
) -> list[Feature]:
    """Features of images: ``pixel_values`` as the model's processor makes them."""
    images = [example.prompt for example in examples]
    values = pixel_values(processor, images, getattr(model.config, "num_channels", 3))
    return [
        {"pixel_values": value, "labels": [IGNORED, label], "head": head, "source": source, "truncated": 0}
        for value, label in zip(values, labels, strict=True)
    ]


def pixel_values(processor: Any, images: Sequence[str], channels: int) -> list[Tensor]:
    """Process images, each to (channels, H, W); grey ones are repeated over the channels.

    Raises:
        UsageError: if an image has neither one channel nor as many as the model reads.
    """
    found: list[Tensor] = []
    arrays = []
    for image in images:
        assert isinstance(image, Image)
        pixels = image.pixels
        if pixels.shape[-1] != channels:
            if pixels.shape[-1] != 1:
                raise UsageError(f"images: have {pixels.shape[-1]} channels, and the model reads {channels}")
            pixels = np.repeat(pixels, channels, axis=-1)
        arrays.append(pixels)
    for begin in range(0, len(arrays), 256):
        part = arrays[begin : begin + 256]
        found += processor(images=part, return_tensors="pt", input_data_format="channels_last")["pixel_values"]
    return found
