"""TFDS builders that write the catalogue's data sets without TensorFlow.

Each has the name, version and features of the catalogue's builder, so a plain `tfds.data_source("mnist", ...)` reads
what it wrote. Writing needs neither TensorFlow (images are encoded by pillow, records are array_record) nor a network
(the official files are here). TinyImageNet, which the catalogue lacks, is read back by
`tfds.builder_from_directory("data/tiny_imagenet/1.0.0")`.
"""

import contextlib
import io
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from experiments.common import raw_files

FILE_FORMAT = "array_record"


class _LabelledImages(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Images and labels out of official files.

    It is not registered: TFDS keeps finding the catalogue's own builder under the name.
    """

    VERSION = tfds.core.Version("3.0.1")
    SHAPE = (28, 28, 1)
    LABEL = {"num_classes": 10}
    TEST = "test"  # the split that networks are tested on

    def __init__(self, *, examples: raw_files.Examples, **kwargs: Any):
        self._examples = examples
        super().__init__(file_format=FILE_FORMAT, **kwargs)

    def _features(self) -> dict[str, Any]:
        return {
            "image": tfds.features.Image(shape=self.SHAPE),
            "label": tfds.features.ClassLabel(**self.LABEL),
        }

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=type(self).__doc__,
            features=tfds.features.FeaturesDict(self._features()),
            supervised_keys=("image", "label"),
            disable_shuffling=True,  # the files' order is the order that published indices refer to
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        del dl_manager  # the examples are here already
        return {split: self._generate_examples(split) for split in self._examples}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        images, labels = self._examples[split]
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            encoded = io.BytesIO(image) if isinstance(image, bytes) else _png(image)
            yield index, {"image": encoded, "label": int(label)}


class Mnist(_LabelledImages, skip_registration=True):
    """The MNIST database of handwritten digits."""

    name = "mnist"


class FashionMnist(_LabelledImages, skip_registration=True):
    """Zalando's article images of ten classes, of the size and in the splits of MNIST."""

    name = "fashion_mnist"
    LABEL = {
        "names": (
            *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
            *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        )
    }


class Cifar10(_LabelledImages, skip_registration=True):
    """Small colour photographs of ten classes."""

    name = "cifar10"
    VERSION = tfds.core.Version("3.0.2")
    SHAPE = (32, 32, 3)
    LABEL = {"names": ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")}

    def _features(self) -> dict[str, Any]:
        return {"id": tfds.features.Text(), **super()._features()}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        for index, example in super()._generate_examples(split):
            yield index, {"id": f"{split}_{index:05d}", **example}


class TinyImagenet(_LabelledImages, skip_registration=True):
    """Photographs of 200 classes, 500 a class to train on, as the JPEGs that were published.

    Some of them are greyscale; a reader makes them RGB by repeating their one channel. Labels number the WordNet ids in
    sorted order. Those of the test set were never published, so the 10,000 images of `validation` stand in for it.
    """

    name = "tiny_imagenet"
    VERSION = tfds.core.Version("1.0.0")
    SHAPE = (64, 64, 3)
    LABEL = {"num_classes": 200}
    TEST = "validation"


BUILDERS = {builder.name: builder for builder in (Mnist, FashionMnist, Cifar10, TinyImagenet)}


def _png(image: np.ndarray) -> io.BytesIO:
    """Encodes an image, uint8 [H, W, C] with one or three channels."""
    encoded = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(encoded, "PNG")
    encoded.seek(0)
    return encoded


def num_classes(name: str) -> int:
    """Returns the number of a data set's classes."""
    return tfds.features.ClassLabel(**BUILDERS[name].LABEL).num_classes


def prepared_dir(name: str, data_dir: pathlib.Path) -> pathlib.Path:
    """Returns the folder that the data set's prepared files are in, existing or not."""
    return data_dir / name / str(BUILDERS[name].VERSION)


def is_prepared(name: str, data_dir: pathlib.Path) -> bool:
    """Tells whether the data set is there in the form that can be read without TensorFlow.

    Raises:
      DataError: where the folder exists but holds something else.
    """
    folder = prepared_dir(name, data_dir)
    if not folder.exists():
        return False
    try:
        found = json.loads((folder / "dataset_info.json").read_text(encoding="utf-8"))["fileFormat"]
    except (OSError, ValueError, KeyError) as error:
        raise raw_files.DataError(
            f"{folder} holds no readable dataset_info.json: delete that folder and prepare again"
        ) from error
    if found != FILE_FORMAT:
        raise raw_files.DataError(f"{folder} was prepared as {found}, which needs TensorFlow: name another --data_dir")
    return True


def prepare(name: str, *, data_dir: pathlib.Path, raw_dir: pathlib.Path | None = None) -> bool:
    """Prepares a data set, unless it is prepared already; an interrupted call leaves none behind.

    Args:
      name: a key of `BUILDERS`.
      data_dir: the TFDS directory to write into; downloads go to its `downloads/`.
      raw_dir: the folder of the official files; None downloads them.

    Returns:
      Whether anything had to be done.

    Raises:
      DataError: where an official file is missing, damaged or unreachable, or `data_dir` cannot be written.
    """
    if is_prepared(name, data_dir):
        return False
    examples = raw_files.read(name, raw_dir=raw_dir, download_dir=data_dir / "downloads" / name)
    try:
        # TFDS writes into a folder of another name and renames it at the end. What it prints is about a download.
        with contextlib.redirect_stdout(io.StringIO()):
            BUILDERS[name](examples=examples, data_dir=data_dir).download_and_prepare()
    except OSError as error:
        raise raw_files.DataError(f"{name} could not be written to {data_dir}: {error}") from error
    return True
