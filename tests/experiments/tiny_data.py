"""Tiny data sets in the layout of the official files, with checksums to match."""

import gzip
import hashlib
import io
import tarfile

import numpy as np

from experiments.common import raw_files

TRAIN, TEST = 30, 12


def make_arrays(shape, *, seed=0):
    """Random images and labels of a train and a test split."""
    rng = np.random.default_rng(seed)
    return {
        split: (rng.integers(0, 256, (size, *shape), np.uint8), rng.permutation(size).astype(np.uint8) % 10)
        for split, size in (("train", TRAIN), ("test", TEST))
    }


def write_idx_files(folder, monkeypatch, *, name="mnist"):
    """Writes the four files of MNIST or Fashion-MNIST and makes their checksums the official ones."""
    arrays = make_arrays((28, 28, 1))
    contents = []
    for images, labels in arrays.values():
        contents.append(np.array([2051, *images.shape[:3]], ">i4").tobytes() + images.tobytes())
        contents.append(np.array([2049, len(labels)], ">i4").tobytes() + labels.tobytes())
    files = [
        raw_files.RawFile(file.name, _write(folder / file.name, gzip.compress(content)), f"{folder.as_uri()}/")
        for file, content in zip(raw_files.OFFICIAL[name], contents, strict=True)
    ]
    monkeypatch.setitem(raw_files.OFFICIAL, name, tuple(files))
    return arrays


def write_cifar10(folder, monkeypatch):
    """Writes CIFAR-10 twice, unpacked and as its archive, and makes the checksums the official ones."""
    arrays = make_arrays((32, 32, 3))
    records = {
        split: np.concatenate([labels[:, None], images.transpose(0, 3, 1, 2).reshape(len(labels), -1)], axis=1)
        for split, (images, labels) in arrays.items()
    }
    parts = [*np.split(records["train"], 5), records["test"]]
    unpacked = folder / "unpacked" / "cifar-10-batches-bin"
    unpacked.mkdir(parents=True)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, part in zip(list(raw_files.CIFAR10_BATCHES), parts, strict=True):
            monkeypatch.setitem(raw_files.CIFAR10_BATCHES, name, _write(unpacked / name, part.tobytes()))
            archive.add(unpacked / name, f"cifar-10-batches-bin/{name}")
    (folder / "packed").mkdir()
    name = raw_files.OFFICIAL["cifar10"][0].name
    file = raw_files.RawFile(name, _write(folder / "packed" / name, packed.getvalue()), f"{folder.as_uri()}/packed/")
    monkeypatch.setitem(raw_files.OFFICIAL, "cifar10", (file,))
    return arrays


def _write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return hashlib.sha256(content).hexdigest()
