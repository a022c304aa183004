"""The experiments' flags: the fields of one frozen dataclass, each with its default, meaning and limits."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from absl import flags

from experiments.common import augment, data, models
from experiments.common.errors import UserError
from jaxbound import losses

# As JAX names them. highest: float32, whatever it costs; high: TF32 on GPUs, three bfloat16 products on TPUs; default:
# TF32 on GPUs, one bfloat16 product on TPUs. On CPUs all are float32.
PRECISIONS = ("highest", "high", "default")


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

    workdir: str = _flag(
        "runs/mnist_ibp", "folder for checkpoints, metrics and reports; a run found in it is resumed", is_folder=True
    )
    dataset: str = _recipe("mnist_5k", "data set", choices=data.NAMES)
    data_dir: str = _flag(
        data.DEFAULT_DATA_DIR, "TFDS folder that experiments.prepare_data wrote", is_folder=True, is_own=True
    )
    validation_size: int = _recipe(
        0, "training examples held out to choose the best checkpoint; 0: use test", at_least=0
    )
    augmentation: str = _recipe("none", "changes of training images", choices=tuple(augment.RECIPES))
    model: str = _recipe("dm_small", "network", is_valid=models.is_model, names=models.NAMES)
    activation: str = _recipe("relu", "the network's activation", choices=tuple(models.ACTIVATIONS))
    init: str = _recipe("torch", "initial weights", choices=tuple(models.INITS))
    normalize: bool = _recipe(False, "subtract the data set's mean and divide by its standard deviation first")
    seed: int = _recipe(0, "seed of the initial weights, the order of the data and the attack", at_least=0)

    num_seeds: int = _recipe(1, "seeds trained side by side, from --seed on, by one program", at_least=1)

    epochs: int = _flag(60, "epochs to train", at_least=0)
    batch_size: int = _recipe(100, "examples per step; an epoch's remainder is left out", at_least=1)
    learning_rate: float = _recipe(1e-3, "Adam's first learning rate", above=0)
    lr_milestones: tuple[int, ...] = _recipe((), "epochs after which the learning rate decays", at_least=1)
    lr_decay: float = _recipe(0.1, "factor of each decay", above=0)
    grad_clip: float = _recipe(0.0, "largest norm of the gradient; 0: no limit", at_least=0)
    accumulation: int = _recipe(1, "steps whose gradients are averaged into one update", at_least=1)
    max_steps: int = _flag(0, "stop after so many steps, for a trial; 0: train all epochs", at_least=0)

    radius: float = _recipe(0.1, "training radius, at the end of the ramp", above=0)
    norm: str = _recipe("inf", "norm of the perturbation", choices=("inf", "2", "1"))
    clip: bool = _recipe(True, "perturbed pixels stay in [0, 1]")
    warmup_epochs: int = _recipe(2, "epochs of ordinary training, at radius 0", at_least=0)
    ramp_epochs: int = _recipe(28, "epochs over which the radius then grows", at_least=1)
    ramp: str = _recipe("linear", "shape of the ramp", choices=("linear", "smoothed"))
    ramp_mid: float = _recipe(0.25, "curved share of a smoothed ramp", above=0, at_most=0.99)
    kappa_start: float = _recipe(1.0, "weight of the natural loss where the ramp begins", at_least=0, at_most=1)
    kappa_end: float = _recipe(0.5, "weight of the natural loss where the ramp ends", at_least=0, at_most=1)
    l1: float = _recipe(0.0, "weight of the sum of the weights' absolute values", at_least=0)
    stability: float = _recipe(0.0, "weight of the regulariser that makes activations stable", at_least=0)
    regularization: float = _recipe(
        0.0, "weight of the tightness and balance regularisers, which fades until the ramp ends", at_least=0
    )
    slope_end: float = _recipe(-1.0, "slope below zero that leaky_ramp ends with; -1: it stays", at_least=-1, at_most=1)
    slope_begin_epoch: int = _recipe(70, "epoch at which that slope begins to change", at_least=0)
    slope_epochs: int = _recipe(70, "epochs over which it changes", at_least=1)
    ramp_noise: float = _recipe(0.0, "noise of ParamRamp's bends after each update, in their mean", at_least=0)

    mesh: str = _flag(
        "",
        "devices over the axes data (examples) and model (features, rows of bounds), such as data:4,model:2; "
        "empty: all on data",
    )
    precision: str = _recipe(
        "highest",
        "of matrix products in training (high: TF32 on GPUs); verification always has the highest",
        choices=PRECISIONS,
    )
    coordinator: str = _flag(
        "", "host:port of process 0, where several processes train together; auto: as the cluster tells (TPU, SLURM)"
    )
    num_processes: int = _flag(1, "how many processes there are", at_least=1)
    process_id: int = _flag(0, "which one this is, from 0", at_least=0, is_own=True)
    process_timeout: int = _flag(60, "seconds after which a process that does not answer is given up", at_least=1)
    profile: int = _flag(0, "steps to write a profile of, after the first few; 0: none", at_least=0)

    checkpoint_epochs: int = _flag(5, "epochs between two checkpoints, each with an evaluation", at_least=1)
    log_steps: int = _flag(20, "steps between two looks at the running figures", at_least=1)

    eval_only: bool = _flag(False, "evaluate the run found in --workdir, train nothing")
    eval_checkpoint: str = _flag("last", "which checkpoint to evaluate", choices=("last", "best"))
    eval_radii: tuple[float, ...] = _flag((0.1,), "radii to evaluate; the first is the headline", above=0)
    eval_methods: tuple[str, ...] = _flag(
        ("ibp", "crown_ibp", "crown"),
        "bounds to evaluate with",
        choices=("ibp", "crown_ibp", "crown_lbp", "crown", "alpha_crown"),
    )
    eval_statistics: str = _flag(
        "population",
        "batch norm's statistics in the final evaluation: of the whole training set, or the running averages, by which "
        "the figures during training are, and the choice of the best checkpoint",
        choices=("population", "running"),
    )
    eval_lines: str = _flag("tight", "lines around activations in an evaluation", choices=("tight", "adaptive"))
    eval_size: int = _flag(0, "evaluate the first so many test examples; 0: all", at_least=0)
    eval_batch_size: int = _flag(250, "examples per evaluation step", at_least=1)
    crown_everywhere: bool = _flag(False, "run crown at every radius, not only at the first")
    crown_batch_size: int = _flag(8, "examples per step of crown", at_least=1)
    crown_chunk: int = _flag(512, "rows that crown bounds at a time, which sets its memory", at_least=1)
    pgd_steps: int = _flag(40, "steps of the attack", at_least=0)
    pgd_restarts: int = _flag(3, "random starts of the attack", at_least=1)
    pgd_step_size: float = _flag(
        0.0, "step of the attack, in pixel units; 0: such that the steps together are 2.5 times the radius", at_least=0
    )

    def __post_init__(self):
        """Raises UserError for the first value outside its limits."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            for item in value if isinstance(value, tuple) else (value,):
                _check(field, item)
        for name in ("eval_radii", "eval_methods"):
            if not getattr(self, name):
                raise UserError(f"--{name} is empty: give at least one")
        if self.ramp_noise and not self.has_ramps:
            raise UserError(f"--ramp_noise={self.ramp_noise} moves bends that --activation={self.activation} has not")
        self._check_slope()
        if self.regularization and self.norm != "inf":
            raise UserError(f"--regularization compares bounds with the width of a box, not with --norm={self.norm}")
        if self.warmup_epochs + self.ramp_epochs > self.epochs > 0:
            raise UserError(
                f"the ramp is longer than the run: --warmup_epochs={self.warmup_epochs} and "
                f"--ramp_epochs={self.ramp_epochs} do not fit into --epochs={self.epochs}"
            )

    def _check_slope(self) -> None:
        if self.slope_end == -1:
            return
        if self.activation != "leaky_ramp":
            raise UserError(f"--slope_end={self.slope_end} changes a slope that only --activation=leaky_ramp has")
        if self.slope_end < 0:
            raise UserError(f"--slope_end={self.slope_end} is no slope: give one from 0 to 1, or -1 to keep it")
        if self.slope_begin_epoch + self.slope_epochs > self.epochs > 0:
            raise UserError(
                f"the slope changes for longer than the run: --slope_begin_epoch={self.slope_begin_epoch} and "
                f"--slope_epochs={self.slope_epochs} do not fit into --epochs={self.epochs}"
            )

    @property
    def has_ramps(self) -> bool:
        """Whether the activations are ParamRamps, whose bends are trained."""
        return self.activation in models.RAMPS

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds that are trained side by side."""
        return tuple(range(self.seed, self.seed + self.num_seeds))

    @property
    def betas(self) -> tuple[float, float]:
        """The linear bound's weight where the ramp begins and ends."""
        return 0.0, 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixedConfig(Config):
    """What a mixture of CROWN-IBP and IBP depends on besides."""

    beta_start: float = _recipe(1.0, "weight of the CROWN-IBP bound where the ramp begins", at_least=0, at_most=1)
    beta_end: float = _recipe(
        0.0, "weight of the CROWN-IBP bound where the ramp ends; the rest is IBP", at_least=0, at_most=1
    )

    @property
    def betas(self) -> tuple[float, float]:
        """The linear bound's weight where the ramp begins and ends."""
        return self.beta_start, self.beta_end


@dataclasses.dataclass(frozen=True, kw_only=True)
class CrownConfig(MixedConfig):
    """What CROWN-IBP depends on besides."""

    loss_fusion: bool = _recipe(False, "bound the loss as one number: the cost does not grow with the classes")
    runner_up: bool = _recipe(
        False, "bound the margin over the second most likely class only; errors during training are of it alone"
    )

    def __post_init__(self):
        """Raises UserError for values that do not fit together."""
        super().__post_init__()
        if self.loss_fusion and self.runner_up:
            raise UserError("--runner_up chooses among margins, which --loss_fusion has none of: give one of the two")


_WEIGHTS = {
    "arithmetic": losses.arithmetic_weights,
    "harmonic": losses.harmonic_weights,
    "geometric": losses.geometric_weights,
    "exponential": losses.exponential_weights,
    "polynomial": losses.polynomial_weights,
    "uniform": losses.uniform_weights,
    "increasing": losses.increasing_weights,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class GlobalConfig(MixedConfig):
    """What training at several radii at once depends on besides."""

    radii: int = _recipe(4, "how many radii are trained at once: i/k of the training radius, i = 1..k", at_least=1)
    weights: str = _recipe("arithmetic", "family of the radii's weights", choices=tuple(_WEIGHTS))
    weight_list: tuple[float, ...] = _recipe((), "decreasing weights of sum 1, instead of a family", above=0)
    radius_shares: tuple[float, ...] = _recipe((), "the radii as shares of the training radius, up to 1", above=0)

    def __post_init__(self):
        """Raises UserError for values that do not fit together."""
        super().__post_init__()
        for name in ("weight_list", "radius_shares"):
            values = getattr(self, name)
            if values and len(values) != self.radii:
                raise UserError(f"--{name} has {len(values)} values for --radii={self.radii}: give one for each radius")
        shares = ",".join(map(str, self.radius_shares))
        if list(self.radius_shares) != sorted(set(self.radius_shares)):
            raise UserError(f"--radius_shares={shares} must increase strictly: the smallest radius comes first")
        if self.radius_shares and self.radius_shares[-1] != 1:
            raise UserError(f"--radius_shares={shares} must end with 1, which stands for --radius")
        try:
            self.radius_weights()
        except ValueError as error:
            raise UserError(f"--weight_list={','.join(map(str, self.weight_list))}: {error}") from error

    def radius_weights(self) -> Any:
        """The weight of each radius's loss, from the smallest radius to the largest."""
        return losses.decreasing_weights(self.weight_list) if self.weight_list else _WEIGHTS[self.weights](self.radii)

    def shares(self) -> tuple[float, ...]:
        """The radii as shares of the largest one, which grows during the ramp."""
        return self.radius_shares or tuple((i + 1) / self.radii for i in range(self.radii))


def _check(field: dataclasses.Field, value: Any) -> None:
    """Raises UserError where one value breaks its flag's limits."""
    limits = field.metadata
    if "choices" in limits and value not in limits["choices"]:
        raise UserError(f"--{field.name}={value} is unknown: choose from {', '.join(limits['choices'])}")
    if "is_valid" in limits and not limits["is_valid"](value):
        raise UserError(f"--{field.name}={value} is unknown: choose from {', '.join(limits['names'])}")
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
        names = field.metadata.get("choices") or field.metadata.get("names")
        if names:
            text += f" ({', '.join(names)})"
        if isinstance(value, tuple):
            item = field.type.__args__[0]
            serializer = flags.CsvListSerializer(",")
            flags.DEFINE(_Tuple(item), field.name, value, text, flag_values=values, serializer=serializer)
        else:
            _DEFINE[field.type](field.name, value, text, flag_values=values)


def define_changes(names: Sequence[str], values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines flags by which a program looks at a finished run with other values than its own, for some fields."""
    for field in dataclasses.fields(Config):
        if field.name in names:
            text = f"{field.metadata['help']}; by default the run's own"
            _DEFINE[field.type](field.name, None, text, flag_values=values)


def read_changes(names: Sequence[str], values: flags.FlagValues = flags.FLAGS) -> dict[str, Any]:
    """Those of the flags that were given."""
    return {name: values[name].value for name in names if values[name].value is not None}


def read(defaults: Config, values: flags.FlagValues = flags.FLAGS) -> Config:
    """Returns the parsed flags, checked, as a value of the type that they were defined for.

    Raises:
      UserError: where a value is outside its limits.
    """
    return type(defaults)(**{field.name: values[field.name].value for field in dataclasses.fields(defaults)})
