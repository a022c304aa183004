"""A profile of some steps of training, to be opened in XProf, TensorBoard or Perfetto."""

import pathlib

import jax


class Profile:
    """Records whole stretches between two looks at the running figures.

    Args:
      folder: where it is written.
      steps: how many steps at least; 0 for none.
    """

    def __init__(self, folder: pathlib.Path, *, steps: int):
        self._folder, self._steps = folder, steps
        self._begun: int | None = None

    def look(self, step: int) -> None:
        """Begins at the first look, when everything is compiled, and ends when there are enough steps."""
        if self._begun is None and self._steps:
            self._begun = step
            jax.profiler.start_trace(self._folder, create_perfetto_trace=True)
        elif self._steps and step >= self._begun + self._steps:
            self.close()

    def close(self) -> None:
        """Writes what there is."""
        if self._begun is not None and self._steps:
            jax.profiler.stop_trace()
        self._steps = 0
