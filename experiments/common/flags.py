"""The experiments' flags: the fields of one frozen dataclass, each with its default, meaning and limits."""

import dataclasses
from typing import Any

from absl import flags

from experiments.common import data, models


class UserError(Exception):
    """A mistake that the user can mend; the message says what, where and what to do. Programs exit with it."""


def _flag(default: Any, text: str, **limits: Any) -> Any:
    """A field with its help text and limits: `at_least`, `above`, `at_most` or `choices`."""
    return dataclasses.field(default=default, metadata={"help": text, **limits})


def _recipe(default: Any, text: str, **limits: Any) -> Any:
    """A field that the trained parameters depend on: a run is resumed only with the value that it began with."""
    return _flag(default, text, defines_run=True, **limits)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that a run depends on. The defaults train the sample of 5,000 digits.

    Radii are in pixel units (pixels lie in [0, 1]); schedules are in epochs.
    """

    workdir: str = _flag("runs/mnist_ibp", "folder for checkpoints, metrics and reports; a run found in it is resumed")
    dataset: str = _recipe("mnist_5k", "data set", choices=data.NAMES)
    data_dir: str = _flag(data.DEFAULT_DATA_DIR, "TFDS folder that experiments.prepare_data wrote")
    validation_size: int = _recipe(
        0, "training examples held out to choose the best checkpoint; 0: use test", at_least=0
    )
    model: str = _recipe("dm_small", "network", choices=tuple(models.MODELS))
    seed: int = _recipe(0, "seed of the initial weights, the order of the data and the attack", at_least=0)

    epochs: int = _flag(60, "epochs to train", at_least=0)
    batch_size: int = _recipe(100, "examples per step; an epoch's remainder is left out", at_least=1)
    learning_rate: float = _recipe(1e-3, "Adam's first learning rate", above=0)
    lr_milestones: tuple[int, ...] = _recipe((), "epochs after which the learning rate decays", at_least=1)
    lr_decay: float = _recipe(0.1, "factor of each decay", above=0)
    grad_clip: float = _recipe(0.0, "largest norm of the gradient; 0: no limit", at_least=0)

    radius: float = _recipe(0.1, "training radius, at the end of the ramp", above=0)
    warmup_epochs: int = _recipe(2, "epochs of ordinary training, at radius 0", at_least=0)
    ramp_epochs: int = _recipe(28, "epochs over which the radius then grows", at_least=1)
    ramp: str = _recipe("linear", "shape of the ramp", choices=("linear", "smoothed"))
    kappa_start: float = _recipe(1.0, "weight of the natural loss where the ramp begins", at_least=0, at_most=1)
    kappa_end: float = _recipe(0.5, "weight of the natural loss where the ramp ends", at_least=0, at_most=1)

    checkpoint_epochs: int = _flag(5, "epochs between two checkpoints, each with an evaluation", at_least=1)
    log_steps: int = _flag(20, "steps between two looks at the running figures", at_least=1)

    eval_only: bool = _flag(False, "evaluate the run found in --workdir, train nothing")
    eval_checkpoint: str = _flag("last", "which checkpoint to evaluate", choices=("last", "best"))
    eval_radii: tuple[float, ...] = _flag((0.1,), "radii to evaluate; the first is the headline", above=0)
    eval_methods: tuple[str, ...] = _flag(
        ("ibp", "crown_ibp", "crown"), "bounds to evaluate with", choices=("ibp", "crown_ibp", "crown")
    )
    eval_size: int = _flag(0, "evaluate the first so many test examples; 0: all", at_least=0)
    eval_batch_size: int = _flag(250, "examples per evaluation step", at_least=1)
    crown_everywhere: bool = _flag(False, "run crown at every radius, not only at the first")
    crown_batch_size: int = _flag(8, "examples per step of crown", at_least=1)
    crown_chunk: int = _flag(512, "rows that crown bounds at a time, which sets its memory", at_least=1)
    pgd_steps: int = _flag(40, "steps of the attack", at_least=0)
    pgd_restarts: int = _flag(3, "random starts of the attack", at_least=1)
    pgd_step_size: float = _flag(0.01, "step of the attack, in pixel units", above=0)

    def __post_init__(self):
        """Raises UserError for the first value outside its limits."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            for item in value if isinstance(value, tuple) else (value,):
                _check(field, item)
        for name in ("eval_radii", "eval_methods"):
            if not getattr(self, name):
                raise UserError(f"--{name} is empty: give at least one")


def _check(field: dataclasses.Field, value: Any) -> None:
    """Raises UserError where one value breaks its flag's limits."""
    limits = field.metadata
    if "choices" in limits and value not in limits["choices"]:
        raise UserError(f"--{field.name}={value} is unknown: choose from {', '.join(limits['choices'])}")
    if "at_least" in limits and not value >= limits["at_least"]:
        raise UserError(f"--{field.name}={value} is too small: it must be at least {limits['at_least']}")
    if "above" in limits and not value > limits["above"]:
        raise UserError(f"--{field.name}={value} is too small: it must be above {limits['above']}")
    if "at_most" in limits and not value <= limits["at_most"]:
        raise UserError(f"--{field.name}={value} is too large: it must be at most {limits['at_most']}")


class _Tuple(flags.ArgumentParser):
    """Reads values separated by commas."""

    def __init__(self, item: type):
        self.item = item
        self.syntactic_help = f"{item.__name__} values separated by commas"

    def parse(self, argument: Any) -> tuple[Any, ...]:
        """Returns the values as a tuple."""
        if not isinstance(argument, str):
            return tuple(argument)
        try:
            return tuple(self.item(part.strip()) for part in argument.split(",") if part.strip())
        except ValueError as error:
            raise ValueError(f"expected {self.syntactic_help}") from error


_DEFINE = {bool: flags.DEFINE_bool, int: flags.DEFINE_integer, float: flags.DEFINE_float, str: flags.DEFINE_string}


def define(defaults: Config, values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines a command-line flag for every field.

    Args:
      defaults: the program's own defaults.
      values: where to define them.
    """
    for field in dataclasses.fields(defaults):
        value, text = getattr(defaults, field.name), field.metadata["help"]
        if "choices" in field.metadata:
            text += f" ({', '.join(field.metadata['choices'])})"
        if isinstance(value, tuple):
            item = field.type.__args__[0]
            serializer = flags.CsvListSerializer(",")
            flags.DEFINE(_Tuple(item), field.name, value, text, flag_values=values, serializer=serializer)
        else:
            _DEFINE[field.type](field.name, value, text, flag_values=values)


def read(values: flags.FlagValues = flags.FLAGS) -> Config:
    """Returns the parsed flags, checked.

    Raises:
      UserError: where a value is outside its limits.
    """
    return Config(**{field.name: values[field.name].value for field in dataclasses.fields(Config)})
