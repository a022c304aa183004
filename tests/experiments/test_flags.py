import dataclasses
import pathlib

import pytest
from absl import flags as absl_flags

from experiments import mnist_ibp
from experiments.common import flags
from experiments.common.flags import Config, UserError

FLAGFILES = sorted((pathlib.Path(flags.__file__).parents[1] / "flags").glob("*.flags"))


def parse(*arguments, defaults=mnist_ibp.DEFAULTS):
    values = absl_flags.FlagValues()
    flags.define(defaults, values)
    values(["program", *arguments])
    return flags.read(values)


def test_no_flags_give_the_defaults():
    defaults = Config(radius=0.3, eval_radii=(0.2, 0.3), lr_milestones=(1,))
    assert parse(defaults=defaults) == defaults


def test_every_kind_of_value():
    config = parse(
        "--epochs=7", "--radius=0.25", "--eval_only", "--ramp=smoothed", "--eval_radii=0.1, 0.2", "--lr_milestones=3,4"
    )
    assert (config.epochs, config.radius, config.eval_only, config.ramp) == (7, 0.25, True, "smoothed")
    assert (config.eval_radii, config.lr_milestones) == ((0.1, 0.2), (3, 4))
    assert parse("--noeval_only", "--lr_milestones=").lr_milestones == ()


@pytest.mark.parametrize("path", FLAGFILES, ids=lambda path: path.stem)
def test_every_flagfile_is_valid_and_complete(path):
    names = [line.split("=")[0].removeprefix("--") for line in path.read_text().splitlines() if line.startswith("--")]
    assert len(set(names)) == len(names)
    config = parse(f"--flagfile={path}")
    assert config.workdir == f"runs/{path.stem}"
    recipe = {field.name for field in dataclasses.fields(Config) if field.metadata.get("defines_run")}
    unsaid = {"validation_size", "seed", "lr_milestones", "lr_decay", "grad_clip", "ramp"}
    assert recipe - unsaid <= set(names)


def test_the_published_recipe():
    (path,) = [path for path in FLAGFILES if path.stem == "mnist_dm_small_ibp_relu"]
    config = parse(f"--flagfile={path}")
    assert (config.radius, config.eval_radii) == (0.4, (0.3, 0.2, 0.4))
    assert (config.epochs, config.batch_size, config.learning_rate) == (200, 256, 5e-4)
    assert (config.lr_milestones, config.warmup_epochs, config.ramp_epochs) == ((130, 190), 10, 50)
    assert (config.kappa_start, config.kappa_end) == (0, 0)


@pytest.mark.parametrize(
    "argument, error, message",
    [
        ("--epocs=3", absl_flags.UnrecognizedFlagError, "Unknown command line flag 'epocs'. Did you mean: epochs"),
        ("--epochs=3.5", absl_flags.IllegalFlagValueError, "flag --epochs=3.5"),
        ("--radius=big", absl_flags.IllegalFlagValueError, "flag --radius=big"),
        ("--eval_radii=0.1,big", absl_flags.IllegalFlagValueError, "expected float values separated by commas"),
        ("--lr_milestones=1.5", absl_flags.IllegalFlagValueError, "expected int values separated by commas"),
        ("--flagfile=nowhere.flags", absl_flags.CantOpenFlagFileError, "nowhere.flags"),
        ("--model=vgg", UserError, "--model=vgg is unknown: choose from dm_small, dm_medium"),
        ("--dataset=imagenet", UserError, "--dataset=imagenet is unknown: choose from .*mnist_5k"),
        ("--eval_methods=ibp,lp", UserError, "--eval_methods=lp is unknown: choose from ibp, crown_ibp, crown"),
        ("--eval_methods=", UserError, "--eval_methods is empty"),
        ("--eval_radii=", UserError, "--eval_radii is empty"),
        ("--eval_radii=0.1,-0.1", UserError, "--eval_radii=-0.1 is too small: it must be above 0"),
        ("--radius=0", UserError, "--radius=0.0 is too small: it must be above 0"),
        ("--radius=nan", UserError, "--radius=nan is too small"),
        ("--epochs=-1", UserError, "--epochs=-1 is too small: it must be at least 0"),
        ("--batch_size=0", UserError, "--batch_size=0 is too small: it must be at least 1"),
        ("--kappa_end=1.5", UserError, "--kappa_end=1.5 is too large: it must be at most 1"),
    ],
)
def test_a_bad_value_is_named(argument, error, message):
    with pytest.raises(error, match=message):
        parse(argument)
