"""Writing files so that they are there whole or not at all."""

import os
import pathlib
import tempfile

from experiments.common.errors import UserError

CURVE = "curve.json"  # beside a run's results: its errors over the radius


def replace_text(path: pathlib.Path, text: str) -> None:
    """Writes a text file; an interruption leaves the old content."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def writable_folder(name: str) -> pathlib.Path:
    """Makes a folder and returns its path.

    Raises:
      UserError: where it cannot be made or written to.
    """
    folder = pathlib.Path(name).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"--workdir={name} is not writable ({error.strerror}): name a folder that is") from error
    return folder
