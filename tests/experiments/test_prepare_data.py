"""The command, and the modules under it: `raw_files` and `builders`."""

import io
import os
import pathlib
import subprocess
import sys
import threading
import urllib.request

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from experiments import prepare_data
from experiments.common import builders, raw_files
from experiments.common.raw_files import DataError
from tests.experiments import tiny_data

ROOT = pathlib.Path(__file__).parent.parent.parent


@pytest.fixture(name="raw")
def fixture_raw(tmp_path, monkeypatch):
    """A folder of tiny official MNIST files."""
    tiny_data.write_idx_files(tmp_path / "raw", monkeypatch)
    return tmp_path / "raw"


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for split, (images, labels) in found.items():
        np.testing.assert_array_equal([decoded(image) for image in images], expected[split][0])
        np.testing.assert_array_equal(labels, expected[split][1])


def decoded(image):
    return np.asarray(Image.open(io.BytesIO(image)).convert("RGB")) if isinstance(image, bytes) else image


def run_command(*arguments):
    command = [sys.executable, "-m", "experiments.prepare_data", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_idx_files(tmp_path, monkeypatch, name):
    arrays = tiny_data.write_idx_files(tmp_path, monkeypatch, name=name)
    assert_same(raw_files.read(name, raw_dir=tmp_path, download_dir=tmp_path / "none"), arrays)


@pytest.mark.parametrize("folder", ["packed", "unpacked", "unpacked/cifar-10-batches-bin"])
def test_cifar10_files(tmp_path, monkeypatch, folder):
    arrays = tiny_data.write_cifar10(tmp_path, monkeypatch)
    assert_same(raw_files.read("cifar10", raw_dir=tmp_path / folder, download_dir=tmp_path / "none"), arrays)


def test_tiny_imagenet_files(tmp_path, monkeypatch):
    arrays = tiny_data.write_tiny_imagenet(tmp_path, monkeypatch)
    found = raw_files.read("tiny_imagenet", raw_dir=tmp_path, download_dir=tmp_path / "none")
    assert_same(found, arrays)
    assert_same(found, arrays)  # images that are read one at a time can be read again


@pytest.mark.parametrize(
    "member", ["train/n02/images/n02_3.JPEG", "train/n01/images/n01_0.JPEG", "val/images/val_5.JPEG"]
)
def test_tiny_imagenet_of_another_layout(tmp_path, monkeypatch, member):
    tiny_data.write_tiny_imagenet(tmp_path, monkeypatch, without=member)
    with pytest.raises(DataError, match=f"tiny-imagenet-200.zip lacks 1 images, among them tiny-imagenet-200/{member}"):
        builders.prepare("tiny_imagenet", data_dir=tmp_path / "data", raw_dir=tmp_path)
    assert not builders.is_prepared("tiny_imagenet", tmp_path / "data")


def test_damaged_tiny_imagenet(tmp_path, monkeypatch):
    tiny_data.write_tiny_imagenet(tmp_path, monkeypatch)
    path = tmp_path / "tiny-imagenet-200.zip"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"{path} is truncated or damaged: .* have SHA-256"):
        raw_files.read("tiny_imagenet", raw_dir=tmp_path, download_dir=tmp_path)


def test_missing_tiny_imagenet(tmp_path):
    message = r"tiny-imagenet-200\.zip is missing: --raw_dir must hold this file, as published at http://cs231n"
    with pytest.raises(DataError, match=message):
        raw_files.read("tiny_imagenet", raw_dir=tmp_path, download_dir=tmp_path)


WRITERS = {
    "mnist": tiny_data.write_idx_files,
    "cifar10": tiny_data.write_cifar10,
    "tiny_imagenet": tiny_data.write_tiny_imagenet,
}


@pytest.mark.parametrize("name", list(WRITERS))
def test_downloads_once(tmp_path, monkeypatch, name):
    arrays = WRITERS[name](tmp_path / "server", monkeypatch)
    assert_same(raw_files.read(name, raw_dir=None, download_dir=tmp_path / "kept"), arrays)
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: pytest.fail("downloaded again"))
    assert_same(raw_files.read(name, raw_dir=None, download_dir=tmp_path / "kept"), arrays)
    assert {path.name for path in (tmp_path / "kept").iterdir()} == {file.name for file in raw_files.OFFICIAL[name]}


def test_download_of_other_bytes_is_not_kept(tmp_path, raw):
    (raw / "t10k-labels-idx1-ubyte.gz").write_bytes(b"something else")
    with pytest.raises(
        DataError, match=r"t10k-labels-idx1-ubyte.gz could not be downloaded: .* SHA-256 \w{64}, expected"
    ):
        raw_files.read("mnist", raw_dir=None, download_dir=tmp_path / "kept")
    assert {path.name for path in (tmp_path / "kept").iterdir()} == {
        file.name for file in raw_files.OFFICIAL["mnist"] if not file.name.startswith("t10k-labels")
    }


def test_unreachable_address(tmp_path):
    file = raw_files.RawFile("a.gz", "0" * 64, (tmp_path / "nowhere").as_uri() + "/")
    with pytest.raises(DataError, match=r"nowhere/a\.gz could not be downloaded: .*Check the network.*--raw_dir"):
        raw_files.download(file, tmp_path / "kept" / "a.gz")
    assert not list((tmp_path / "kept").iterdir())


def test_silent_address_is_given_up(tmp_path, monkeypatch):
    calls, released = [], threading.Event()

    def hang(url, timeout):
        calls.append((url, timeout))
        released.wait()
        raise OSError("too late")

    monkeypatch.setattr(urllib.request, "urlopen", hang)
    monkeypatch.setattr(raw_files, "OPEN_SECONDS", 0.05)
    with pytest.raises(DataError, match="could not be downloaded: no connection within 0.05 s"):
        raw_files.download(raw_files.OFFICIAL["mnist"][0], tmp_path / "a.gz")
    released.set()
    assert [timeout for _, timeout in calls] == [raw_files.SOCKET_SECONDS]


def test_waiting_times_keep_the_promise():
    assert max(raw_files.SOCKET_SECONDS, raw_files.OPEN_SECONDS) < 15


def test_missing_file(raw):
    (raw / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match=f"{raw}/train-labels-idx1-ubyte.gz is missing: --raw_dir must hold this file"):
        raw_files.read("mnist", raw_dir=raw, download_dir=raw)


def test_missing_batch(tmp_path, monkeypatch):
    tiny_data.write_cifar10(tmp_path, monkeypatch)
    (tmp_path / "unpacked" / "cifar-10-batches-bin" / "data_batch_3.bin").unlink()
    with pytest.raises(DataError, match=r"data_batch_3\.bin cannot be read: No such file"):
        raw_files.read("cifar10", raw_dir=tmp_path / "unpacked", download_dir=tmp_path)


def test_missing_archive(tmp_path):
    with pytest.raises(DataError, match=r"cifar-10-binary\.tar\.gz is missing"):
        raw_files.read("cifar10", raw_dir=tmp_path, download_dir=tmp_path)


def test_truncated_file(raw):
    path = raw / "train-images-idx3-ubyte.gz"
    os.truncate(path, 1000)
    expected = raw_files.OFFICIAL["mnist"][0].sha256
    message = rf"{path} is truncated or damaged: its 1000 bytes have SHA-256 \w{{64}}, expected {expected}"
    with pytest.raises(DataError, match=message):
        raw_files.read("mnist", raw_dir=raw, download_dir=raw)


def test_official_checksums_are_complete():
    checksums = [file.sha256 for files in raw_files.OFFICIAL.values() for file in files]
    checksums += raw_files.CIFAR10_BATCHES.values()
    assert len(set(checksums)) == 4 + 4 + 1 + 6 + 1
    assert all(len(bytes.fromhex(checksum)) == 32 for checksum in checksums)


@pytest.mark.parametrize("name", [name for name in builders.BUILDERS if name != "tiny_imagenet"])  # which it lacks
def test_builders_agree_with_the_catalogue(tmp_path, name):
    ours = builders.BUILDERS[name](examples={}, data_dir=tmp_path)
    theirs = tfds.builder_cls(name)(data_dir=tmp_path)
    assert (ours.name, ours.version) == (theirs.name, theirs.version)
    assert ours.info.features.to_json() == theirs.info.features.to_json()
    assert ours.info.supervised_keys == theirs.info.supervised_keys


def test_preparing_twice_does_nothing_the_second_time(tmp_path, raw):
    first = prepare_data.prepare("mnist", data_dir=str(tmp_path / "data"), raw_dir=str(raw))
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*")}
    second = prepare_data.prepare("mnist", data_dir=str(tmp_path / "data"), raw_dir=None)
    assert first == f"mnist is prepared in {tmp_path}/data"
    assert second == f"mnist was already prepared in {tmp_path}/data"
    assert written == {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*")}


def test_an_interrupted_preparation_leaves_nothing(tmp_path, raw, monkeypatch):
    def encode(image):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(builders, "_png", encode)
        builders.prepare("mnist", data_dir=tmp_path / "data", raw_dir=raw)
    assert not builders.is_prepared("mnist", tmp_path / "data")
    assert not list((tmp_path / "data" / "mnist").iterdir())
    assert builders.prepare("mnist", data_dir=tmp_path / "data", raw_dir=raw)


def test_directory_that_cannot_be_written(tmp_path, raw):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(DataError, match=f"mnist could not be written to {tmp_path}/file"):
        builders.prepare("mnist", data_dir=tmp_path / "file", raw_dir=raw)


def test_command_reports_an_error_in_one_line(tmp_path):
    done = run_command("--dataset=mnist", f"--data_dir={tmp_path}", f"--raw_dir={tmp_path}")
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {tmp_path}/train-images-idx3-ubyte.gz is missing")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset=svhn"], "value should be one of <mnist|fashion_mnist|cifar10|tiny_imagenet>"),
        ([], "Flag --dataset must have a value"),
        (["--dataset=mnist", "--datadir=x"], "Unknown command line flag 'datadir'"),
        (["--dataset=mnist", "cifar10"], "unexpected arguments: cifar10"),
    ],
)
def test_command_refuses_wrong_flags(arguments, message):
    done = run_command(*arguments)
    assert done.returncode == 1
    assert message in done.stdout + done.stderr
