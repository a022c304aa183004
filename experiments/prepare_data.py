"""Prepares a data set for the experiments, without TensorFlow.

    python -m experiments.prepare_data --dataset=mnist

downloads the official files, checks them and writes a TFDS directory that `--dataset=mnist --data_dir=data` reads.
With `--raw_dir` the official files are taken from a folder and nothing is downloaded. The files are the four of MNIST
or Fashion-MNIST, CIFAR-10's `cifar-10-binary.tar.gz` or what is in it, and TinyImageNet's `tiny-imagenet-200.zip`.
TinyImageNet's test labels were never published: its validation set is prepared in the test set's place. A program that
uses it needs 1.4 GB of memory for it.
"""

import pathlib
import sys

from absl import app, flags, logging

from experiments.common import builders, data


def define_flags() -> None:
    """Defines the command's flags; not on import, where they would clash with a training program's."""
    flags.DEFINE_enum("dataset", None, list(builders.BUILDERS), "The data set to prepare.", required=True)
    flags.DEFINE_string("data_dir", data.DEFAULT_DATA_DIR, "The TFDS directory to write into.")
    flags.DEFINE_string("raw_dir", None, "The folder of the official files; without it they are downloaded.")


def prepare(name: str, *, data_dir: str, raw_dir: str | None) -> str:
    """Prepares a data set and returns the line to print; exits with a line of its own where it cannot."""
    try:
        written = builders.prepare(
            name,
            data_dir=pathlib.Path(data_dir).expanduser(),
            raw_dir=pathlib.Path(raw_dir).expanduser() if raw_dir else None,
        )
    except data.DataError as error:
        sys.exit(f"error: {error}")
    return f"{name} {'is prepared' if written else 'was already prepared'} in {data_dir}"


def main(argv: list[str]) -> None:
    """Prepares the data set that the flags name."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    logging.set_verbosity(logging.WARNING)  # TFDS's notes would break the progress bars
    print(prepare(flags.FLAGS.dataset, data_dir=flags.FLAGS.data_dir, raw_dir=flags.FLAGS.raw_dir))


if __name__ == "__main__":
    define_flags()
    app.run(main)
