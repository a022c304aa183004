"""Mistakes that a user can mend, and how a program ends by one."""

import contextlib
import sys
from collections.abc import Iterator, Sequence

from absl import logging


class UserError(Exception):
    """A mistake that the user can mend; the message says what, where and what to do. Programs exit with it."""


def first_line(error: Exception) -> str:
    """What a library's error says, short enough to be quoted in ours."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def refuse_arguments(argv: Sequence[str]) -> None:
    """Raises UserError for an argument that is no flag, in a command line as absl leaves it to a program."""
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}: values are given as --flag=value")


@contextlib.contextmanager
def one_line(name: str, *mistakes: type[Exception], resumes: bool = False) -> Iterator[None]:
    """Lets a program end with one line, "name: what is wrong", in place of a traceback.

    Args:
      name: of the program.
      mistakes: exceptions that are the user's, besides UserError.
      resumes: whether Ctrl-C loses nothing, which is then said.
    """
    logging.set_verbosity(logging.ERROR)  # Orbax would tell of every checkpoint
    try:
        yield
    except (UserError, *mistakes) as error:
        sys.exit(f"{name}: {error}")
    except KeyboardInterrupt:
        if not resumes:
            raise
        sys.exit(f"{name}: interrupted; the same command goes on from here")
