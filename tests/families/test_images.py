"""Images as prompts, npz files, and the digits."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest

from forgetting.config import TaskConfig
from forgetting.errors import UsageError
from forgetting.families.vision import pixel_values
from forgetting.micro.digits import PRETRAINED, SEQUENCES, load_digits_sequence, pretraining_images
from forgetting.tasks.build import load_task
from forgetting.tasks.task import Image
from tests.families.small import image, processor


def test_an_image_is_its_pixels() -> None:
    first = image(0)
    again = Image(first.pixels[..., 0].copy())
    assert first == again and hash(first) == hash(again) and first != image(1)
    assert first != Image(first.pixels.reshape(4, 16, 1))
    for other in (copy.deepcopy(first), pickle.loads(pickle.dumps(first))):
        assert other == first and np.array_equal(other.pixels, first.pixels)
    with pytest.raises(ValueError, match="float64"):
        Image(np.zeros((8, 8)))


def test_grey_images_are_repeated_for_a_model_of_colours() -> None:
    (grey,) = pixel_values(processor(), [image(0)], 1)
    expected = image(0).pixels[..., 0] / 255 * 2 - 1
    assert np.allclose(grey[0].numpy(), expected, atol=1e-6)
    from transformers import ViTImageProcessor

    (colours,) = pixel_values(
        ViTImageProcessor(do_resize=False, image_mean=[0.5] * 3, image_std=[0.5] * 3), [image(0)], 3
    )
    assert colours.shape == (3, 8, 8) and all(np.allclose(channel, grey[0]) for channel in colours)
    with pytest.raises(UsageError, match="have 3 channels, and the model reads 1"):
        pixel_values(processor(), [Image(np.zeros((8, 8, 3), np.uint8))], 1)


def write(path: Path, **arrays: np.ndarray) -> str:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return str(path)


def test_npz_files_make_a_task(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)
    path = write(tmp_path / "a.npz", images=images, labels=np.arange(40) % 2)
    task = load_task(TaskConfig(name="t", format="images", train=path, labels=("cat", "dog")))
    assert (len(task.train), len(task.validation), len(task.test)) == (29, 3, 8)
    assert task.metric == "accuracy" and task.chance == 0.5
    assert {example.completion for example in task.train} == {"cat", "dog"}
    numbered = load_task(TaskConfig(name="t", format="images", train=path))
    assert numbered.test[0].choices == ("0", "1")


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"images": np.zeros((4, 8, 8), np.uint8)}, "is not an npz file with images and labels"),
        ({"images": np.zeros((4, 8, 8)), "labels": np.zeros(4, int)}, "has images float64"),
        ({"images": np.zeros((4, 8, 8), np.uint8), "labels": np.zeros(3, int)}, "give uint8"),
        ({"images": np.zeros((4, 8, 8), np.uint8), "labels": np.full(4, 2)}, "has label 2, not one from 0 to 1"),
        ({"images": np.array([{}]), "labels": np.zeros(1, int)}, "is not an npz file"),
    ],
)
def test_other_files_are_one_line(arrays: dict, said: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.npz", **arrays)
    with pytest.raises(UsageError) as error:
        load_task(TaskConfig(name="t", format="images", train=path, labels=("cat", "dog")))
    assert said in str(error.value) and "\n" not in str(error.value) and "task 't'" in str(error.value)


def test_no_digit_is_in_two_places() -> None:
    train, held_out = ({e.prompt for e in part} for part in pretraining_images())
    assert not train & held_out and {e.completion for e in pretraining_images()[0]} == set(PRETRAINED)
    for name in SEQUENCES:
        for task in load_digits_sequence(name).tasks:
            splits = [{e.prompt for e in split} for split in (task.train, task.validation, task.test)]
            assert not (splits[0] & splits[1] or splits[0] & splits[2] or splits[1] & splits[2])
            assert not any(split & (train | held_out) for split in splits)
    with pytest.raises(UsageError, match="ask for fewer"):
        load_digits_sequence("digits-split", train_size=10_000)
    small, whole = (load_digits_sequence("digits-split", train_size=n).tasks[0] for n in (10, None))
    assert small.test == whole.test and len(small.train) == 10
