"""Tiny data sets in the layout of the official files, with checksums to match."""

import gzip
import hashlib
import io
import tarfile
import zipfile

import numpy as np
from PIL import Image

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


WNIDS = ("n03", "n01", "n02")  # as in the official list, unsorted
EACH = 4


def write_tiny_imagenet(folder, monkeypatch, *, without=None):
    """Writes TinyImageNet's archive with three classes, less one member, and makes its checksum the official one.

    The first training image of a class, and the first of the validation images, are greyscale.
    """
    rng = np.random.default_rng(0)
    sorted_wnids = sorted(WNIDS)
    members, arrays = (
        {"wnids.txt": "\n".join(WNIDS).encode(), "words.txt": b"n01\tgoldfish"},
        {"train": [], "validation": []},
    )

    def add(split, name, wnid, *, grey):
        pixels = rng.integers(0, 256, (64, 64) if grey else (64, 64, 3), np.uint8)
        encoded = io.BytesIO()
        Image.fromarray(pixels).save(encoded, "JPEG")
        members[name] = encoded.getvalue()
        decoded = np.asarray(Image.open(encoded))  # what JPEG made of the pixels
        arrays[split].append((decoded if decoded.ndim == 3 else np.stack([decoded] * 3, -1), sorted_wnids.index(wnid)))

    for index in range(EACH):
        for wnid in sorted_wnids:
            add("train", f"train/{wnid}/images/{wnid}_{index}.JPEG", wnid, grey=index == 0)
    annotations = []
    for index in range(TEST):
        wnid = WNIDS[rng.integers(len(WNIDS))]
        add("validation", f"val/images/val_{index}.JPEG", wnid, grey=index == 0)
        members[f"test/images/test_{index}.JPEG"] = b"without a label"
        annotations.append(f"val_{index}.JPEG\t{wnid}\t0\t32\t44\t62\n")
    members["val/val_annotations.txt"] = "".join(annotations).encode()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name in sorted(members.keys() - {without}):
            archive.writestr(f"tiny-imagenet-200/{name}", members[name])
    file = raw_files.OFFICIAL["tiny_imagenet"][0]
    sha256 = _write(folder / file.name, packed.getvalue())
    monkeypatch.setitem(
        raw_files.OFFICIAL, "tiny_imagenet", (raw_files.RawFile(file.name, sha256, f"{folder.as_uri()}/"),)
    )
    monkeypatch.setattr(raw_files, "TINY_IMAGENET_EACH", EACH)
    return {
        split: (np.stack([image for image, _ in pairs]), np.array([label for _, label in pairs]))
        for split, pairs in arrays.items()
    }


def _write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return hashlib.sha256(content).hexdigest()
