"""What is found of single examples, as lines of a file: all that an interrupted program needs to go on."""

import json
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from experiments.common.errors import UserError
from experiments.common.files import replace_text, writable_folder


class Records:
    """A file of JSON lines: first the settings that the others depend on, then one for each thing found.

    Lines are appended as they come. A last line that was cut short is forgotten, and found again.

    Args:
      path: the file; made if need be.
      settings: what the lines depend on.

    Attributes:
      rows: the file's lines, in their order.

    Raises:
      UserError: the file has other settings, or lines that are none, or cannot be written.
    """

    def __init__(self, path: pathlib.Path, settings: Mapping[str, Any]):
        self._path = writable_folder(str(path.parent)) / path.name
        text = path.read_bytes() if path.exists() else b""
        whole = text.rfind(b"\n") + 1
        header, *self.rows = [self._parsed(*pair) for pair in enumerate(text[:whole].splitlines(), 1)] or [None]
        if header is None:
            replace_text(path, json.dumps(settings) + "\n")
        else:
            self._refuse_others(header, settings)
            os.truncate(path, whole)

    def append(self, rows: Iterable[dict[str, Any]]) -> None:
        """Writes lines."""
        new = list(rows)
        with self._path.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(row, allow_nan=False) + "\n" for row in new))
        self.rows += new

    def _parsed(self, number: int, line: bytes) -> dict[str, Any]:
        try:
            return dict(json.loads(line))
        except (ValueError, TypeError) as error:
            raise UserError(f"{self._path}, line {number}, is damaged: delete the line, or the file") from error

    def _refuse_others(self, header: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        other = [
            f"{name}={header.get(name)}, not {value}" for name, value in settings.items() if header.get(name) != value
        ]
        if other:
            raise UserError(
                f"{self._path} holds results for other settings: {'; '.join(other)}. Move it away, or delete it"
            )
