"""The data sets' official files: where they are published, their checksums, and what is in them."""

import dataclasses
import gzip
import hashlib
import http.client
import os
import pathlib
import queue
import tarfile
import tempfile
import threading
import urllib.request
import zipfile
from collections.abc import Callable, Iterator

import numpy as np
import tqdm

from experiments.common.errors import UserError

SOCKET_SECONDS = 10.0  # the longest wait for one answer of a server
OPEN_SECONDS = 12.0  # the longest wait for a connection, name resolution included
CHUNK = 1 << 18

_CIFAR10_FOLDER = "cifar-10-batches-bin"
_TINY_IMAGENET_FOLDER = "tiny-imagenet-200"
TINY_IMAGENET_EACH = 500  # training images of a class


class DataError(UserError):
    """A data set that cannot be used; the message says which file is at fault and what to do."""


@dataclasses.dataclass(frozen=True)
class Zipped:
    """Encoded images inside a zip file, read one at a time and as often as they are iterated over.

    Args:
      archive: the file.
      members: the images' names in it.
    """

    archive: pathlib.Path
    members: tuple[str, ...]

    def __iter__(self) -> Iterator[bytes]:
        """Yields the images' bytes."""
        with zipfile.ZipFile(self.archive) as archive:
            yield from map(archive.read, self.members)


# By split: images, in memory as uint8 [N, H, W, C] or still encoded, and labels [N].
Examples = dict[str, tuple[np.ndarray | Zipped, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class RawFile:
    """One official file.

    Args:
      name: its file name.
      sha256: the checksum that it was published with.
      folder: the public address that it is downloaded from, up to the name.
    """

    name: str
    sha256: str
    folder: str


_IDX_NAMES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)


def _idx_files(folder: str, *checksums: str) -> tuple[RawFile, ...]:
    """Returns the four idx files of a data set; MNIST and its successors share their names."""
    return tuple(RawFile(name, sha256, folder) for name, sha256 in zip(_IDX_NAMES, checksums, strict=True))


OFFICIAL = {
    "mnist": _idx_files(
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
        "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    ),
    "fashion_mnist": _idx_files(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
    ),
    "cifar10": (
        RawFile(
            "cifar-10-binary.tar.gz",
            "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
            "https://www.cs.toronto.edu/~kriz/",
        ),
    ),
    "tiny_imagenet": (
        RawFile(
            "tiny-imagenet-200.zip",
            "6198c8ae015e2b3e007c7841da39ec069199b9aa3bfa943a462022fe5e43c821",
            "http://cs231n.stanford.edu/",
        ),
    ),
}

# The members of CIFAR-10's archive, which may also be given unpacked: name and SHA-256; the last one is the test set.
CIFAR10_BATCHES = {
    "data_batch_1.bin": "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
    "data_batch_2.bin": "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
    "data_batch_3.bin": "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
    "data_batch_4.bin": "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
    "data_batch_5.bin": "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
    "test_batch.bin": "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
}


def read(name: str, *, raw_dir: pathlib.Path | None, download_dir: pathlib.Path) -> Examples:
    """Reads a data set's official files, after their checksums were found right.

    Args:
      name: a key of `OFFICIAL`.
      raw_dir: the folder that holds the files; None downloads those that `download_dir` lacks.
      download_dir: where downloaded files are kept.

    Returns:
      For `train` and `test`: images, uint8 [N, H, W, C], and labels, [N], in the files' order. TinyImageNet has no test
      set with labels but a `validation` set; its images are encoded still, and in training its classes take turns.

    Raises:
      DataError: where a file is missing, damaged, or cannot be downloaded.
    """
    if name == "cifar10":
        return _read_cifar10(raw_dir, download_dir)
    if name == "tiny_imagenet":
        return _read_tiny_imagenet(_locate(OFFICIAL[name][0], raw_dir=raw_dir, download_dir=download_dir))
    paths = [_locate(file, raw_dir=raw_dir, download_dir=download_dir) for file in OFFICIAL[name]]
    return {"train": _read_idx(*paths[:2]), "test": _read_idx(*paths[2:])}


def _read_idx(images: pathlib.Path, labels: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    """Reads a pair of idx files: big-endian sizes after a magic word, then plain bytes."""
    with gzip.open(images) as file:
        pixels = file.read()
    with gzip.open(labels) as file:
        classes = file.read()
    size = np.frombuffer(pixels, ">i4", count=3, offset=4)
    return np.frombuffer(pixels, np.uint8, offset=16).reshape(*size, 1), np.frombuffer(classes, np.uint8, offset=8)


def _read_cifar10(raw_dir: pathlib.Path | None, download_dir: pathlib.Path) -> Examples:
    """Reads CIFAR-10's six batches, out of its archive or unpacked."""
    folders = [folder for folder in (raw_dir / _CIFAR10_FOLDER, raw_dir) if folder.is_dir()] if raw_dir else []
    unpacked = next((folder for folder in folders if any((folder / name).exists() for name in CIFAR10_BATCHES)), None)
    if unpacked:
        batches = [_verified(unpacked / name, sha256).read_bytes() for name, sha256 in CIFAR10_BATCHES.items()]
    else:
        with tarfile.open(_locate(OFFICIAL["cifar10"][0], raw_dir=raw_dir, download_dir=download_dir)) as archive:
            batches = [archive.extractfile(f"{_CIFAR10_FOLDER}/{name}").read() for name in CIFAR10_BATCHES]
    return {"train": _cifar10_records(b"".join(batches[:-1])), "test": _cifar10_records(batches[-1])}


def _cifar10_records(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Splits records of one label byte and three colour planes of 32 x 32 bytes."""
    records = np.frombuffer(content, np.uint8).reshape(-1, 1 + 3 * 32 * 32)
    return records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), records[:, 0]


def _read_tiny_imagenet(path: pathlib.Path) -> Examples:
    """Finds TinyImageNet's images in its archive; the classes are numbered by their WordNet ids in sorted order.

    The archive has the training images class by class. Here the first of every class come first, then the second ones
    and so on, so that any run of them is a sample of all classes, as in the other data sets' files.
    """
    with zipfile.ZipFile(path) as archive:
        wnids, annotations = (
            archive.read(f"{_TINY_IMAGENET_FOLDER}/{name}").decode()
            for name in ("wnids.txt", "val/val_annotations.txt")
        )
        present = set(archive.namelist())
    labels = {wnid: label for label, wnid in enumerate(sorted(wnids.split()))}
    rows = {
        "train": [
            (f"train/{wnid}/images/{wnid}_{index}.JPEG", label)
            for index in range(TINY_IMAGENET_EACH)
            for wnid, label in labels.items()
        ],
        # A line has the file's name, its class and a box around the object, between tabulators.
        "validation": [
            (f"val/images/{name}", labels[wnid]) for name, wnid, *_ in map(str.split, annotations.splitlines())
        ],
    }
    examples = {}
    for split, pairs in rows.items():
        members = tuple(f"{_TINY_IMAGENET_FOLDER}/{name}" for name, _ in pairs)
        if missing := [member for member in members if member not in present]:
            raise DataError(f"{path} lacks {len(missing)} images, among them {missing[0]}: get it again")
        examples[split] = Zipped(path, members), np.array([label for _, label in pairs], np.uint8)
    return examples


def _locate(file: RawFile, *, raw_dir: pathlib.Path | None, download_dir: pathlib.Path) -> pathlib.Path:
    """Returns the path of a file whose checksum is right, downloading it where no `raw_dir` is given."""
    path = (raw_dir or download_dir) / file.name
    if not path.exists():
        if raw_dir:
            raise DataError(f"{path} is missing: --raw_dir must hold this file, as published at {file.folder}")
        download(file, path)
    return _verified(path, file.sha256)


def _verified(path: pathlib.Path, sha256: str) -> pathlib.Path:
    """Returns the path of a file that has this checksum, or raises."""
    try:
        actual = _sha256(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    if actual != sha256:
        raise DataError(
            f"{path} is truncated or damaged: its {path.stat().st_size} bytes have SHA-256 {actual}, "
            f"expected {sha256}; delete it and get it again"
        )
    return path


def _sha256(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def download(file: RawFile, path: pathlib.Path) -> None:
    """Downloads an official file, with a progress bar; it takes its name only once it is complete and right.

    Args:
      file: what to download.
      path: where to put it; missing folders are made.

    Raises:
      DataError: where the address does not answer in time or sends a file with another checksum.
    """
    url = file.folder + file.name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".partial-") as scratch:
            partial = pathlib.Path(scratch) / file.name
            _fetch(url, partial)
            if (actual := _sha256(partial)) != file.sha256:
                raise OSError(f"what it sent has SHA-256 {actual}, expected {file.sha256}")
            os.replace(partial, path)
    except (OSError, http.client.HTTPException) as error:
        raise DataError(
            f"{url} could not be downloaded: {error}. Check the network, or get {file.name} in another way "
            "and name its folder with --raw_dir"
        ) from error


def _fetch(url: str, path: pathlib.Path) -> None:
    """Copies what a public address sends into a file."""
    with _within(OPEN_SECONDS, lambda: urllib.request.urlopen(url, timeout=SOCKET_SECONDS)) as answer:
        length = int(answer.headers.get("Content-Length") or 0)
        bar = tqdm.tqdm(total=length or None, unit="B", unit_scale=True, desc=path.name)
        with bar, open(path, "wb") as out:
            while chunk := answer.read(CHUNK):
                out.write(chunk)
                bar.update(len(chunk))


def _within(seconds: float, connect: Callable[[], http.client.HTTPResponse]) -> http.client.HTTPResponse:
    """Calls `connect` and gives up after this time: a socket's own timeout does not cover name resolution."""
    outcome = queue.SimpleQueue()

    def work():
        try:
            outcome.put((connect(), None))
        except (OSError, http.client.HTTPException) as error:
            outcome.put((None, error))

    threading.Thread(target=work, daemon=True).start()
    try:
        answer, error = outcome.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no connection within {seconds:g} s") from None
    if error:
        raise error
    return answer
