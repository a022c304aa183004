import pathlib
import re

import pytest
from absl import flags as absl_flags

from experiments import cifar10_crown_ibp, cifar10_ibp, mnist_crown_ibp, mnist_global, mnist_ibp, tinyimagenet_ibp
from experiments.common import flags
from experiments.common.errors import UserError
from experiments.common.flags import Config, GlobalConfig
from experiments.common.published import ROWS

PROGRAMS = (mnist_ibp, mnist_crown_ibp, mnist_global, cifar10_ibp, cifar10_crown_ibp, tinyimagenet_ibp)
FLAGFILES = sorted((pathlib.Path(flags.__file__).parents[1] / "flags").glob("*.flags"))


def parse(*arguments, defaults=mnist_ibp.DEFAULTS):
    values = absl_flags.FlagValues()
    flags.define(defaults, values)
    values(["program", *arguments])
    return flags.read(defaults, values)


def test_no_flags_give_the_defaults():
    defaults = Config(radius=0.3, eval_radii=(0.2, 0.3), lr_milestones=(1,))
    assert parse(defaults=defaults) == defaults


def test_every_kind_of_value():
    config = parse(
        "--epochs=70", "--radius=0.25", "--eval_only", "--ramp=smoothed", "--eval_radii=0.1, 0.2", "--lr_milestones=3,4"
    )
    assert (config.epochs, config.radius, config.eval_only, config.ramp) == (70, 0.25, True, "smoothed")
    assert (config.eval_radii, config.lr_milestones) == ((0.1, 0.2), (3, 4))
    assert parse("--noeval_only", "--lr_milestones=").lr_milestones == ()


def program_of(name):
    """The program that a flagfile is for."""
    if name.startswith("tinyimagenet"):
        return tinyimagenet_ibp
    if name.startswith("cifar10"):
        return cifar10_crown_ibp if "crown" in name or "fusion" in name else cifar10_ibp
    return mnist_global if "global" in name else mnist_crown_ibp if "crown" in name else mnist_ibp


@pytest.mark.parametrize("path", FLAGFILES, ids=lambda path: path.stem)
def test_every_flagfile_is_valid(path):
    text = path.read_text()
    names = [line.split("=")[0].removeprefix("--") for line in text.splitlines() if line.startswith("--")]
    assert len(set(names)) == len(names)
    program = program_of(path.stem)
    config = parse(f"--flagfile={path}", defaults=program.DEFAULTS)
    assert config.workdir == f"runs/{path.stem}"
    assert text.startswith("#")
    if program is not mnist_ibp:
        assert f"experiments.{program.NAME}" in text


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.NAME)
def test_a_program_names_a_flagfile_of_its_own(program):
    (name,) = re.findall(r"--flagfile=experiments/flags/(\w+)\.flags", program.__doc__)
    (path,) = [path for path in FLAGFILES if path.stem == name]
    assert program_of(path.stem) is program


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_published_row_has_its_flagfile(row):
    (path,) = [path for path in FLAGFILES if path.stem == row.name]
    assert program_of(path.stem).NAME == row.program
    config = parse(f"--flagfile={path}", defaults=program_of(path.stem).DEFAULTS)
    for radius in row.radii:
        assert any(abs(radius - other) < 1e-6 for other in config.eval_radii)
    assert row.method in config.eval_methods


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
        (("--norm=2", "--regularization=0.5"), UserError, "--regularization compares .*, not with --norm=2"),
    ],
)
def test_a_bad_value_is_named(argument, error, message):
    with pytest.raises(error, match=message):
        parse(*((argument,) if isinstance(argument, str) else argument))


@pytest.mark.parametrize(
    "argument, message",
    [
        ("--beta_end=1.5", "--beta_end=1.5 is too large"),
        ("--weights=steep", "--weights=steep is unknown: choose from arithmetic"),
        ("--weight_list=0.5,0.5", "has 2 values for --radii=4"),
        ("--weight_list=0.1,0.2,0.3,0.4", "--weight_list=0.1,0.2,0.3,0.4: .*decreas"),
        ("--weight_list=0.4,0.3,0.2,0.05", "--weight_list=0.4,0.3,0.2,0.05: .*sum"),
        ("--radius_shares=0.5,1", "--radius_shares has 2 values for --radii=4"),
        ("--radius_shares=0.25,0.5,1,0.75", "--radius_shares=0.25,0.5,1.0,0.75 must increase strictly"),
        ("--radius_shares=0.5,1,1.5,2", "--radius_shares=0.5,1.0,1.5,2.0 must end with 1"),
    ],
)
def test_a_bad_value_of_global_training_is_named(argument, message):
    with pytest.raises(UserError, match=message):
        parse(argument, defaults=mnist_global.DEFAULTS)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            ("--epochs=20", "--ramp_epochs=19"),
            "longer than the run: --warmup_epochs=2 and --ramp_epochs=19",
        ),
        (("--slope_end=0",), "only --activation=leaky_ramp has"),
        (("--slope_end=-0.5", "--activation=leaky_ramp"), "--slope_end=-0.5 is no slope: give one from 0 to 1"),
        (("--slope_end=2", "--activation=leaky_ramp"), "--slope_end=2.0 is too large"),
        (
            ("--slope_end=0", "--activation=leaky_ramp", "--epochs=100"),
            "--slope_begin_epoch=70 and --slope_epochs=70 do not fit into --epochs=100",
        ),
        (("--ramp_noise=0.01",), "--ramp_noise=0.01 moves bends that --activation=relu has not"),
        (("--runner_up", "--loss_fusion"), "--runner_up chooses among margins"),
    ],
)
def test_values_that_do_not_fit_together(arguments, message):
    with pytest.raises(UserError, match=message):
        parse(*arguments, defaults=mnist_crown_ibp.DEFAULTS)


def test_radii_and_weights_of_global_training():
    given = GlobalConfig(weight_list=(0.7, 0.3), radii=2, radius_shares=(0.25, 1.0))
    assert (tuple(given.radius_weights()), given.shares()) == ((0.7, 0.3), (0.25, 1.0))
    assert tuple(GlobalConfig(radii=4).radius_weights()) == pytest.approx((0.4, 0.3, 0.2, 0.1))
    assert GlobalConfig(radii=4).shares() == (0.25, 0.5, 0.75, 1.0)


def test_changes_of_a_finished_run_are_those_that_were_given():
    values = absl_flags.FlagValues()
    flags.define_changes(("data_dir", "pgd_steps", "pgd_step_size"), values)
    values(["program", "--pgd_steps=7"])
    assert flags.read_changes(("data_dir", "pgd_steps", "pgd_step_size"), values) == {"pgd_steps": 7}
    with pytest.raises(absl_flags.Error, match="Unknown command line flag 'epochs'"):
        values(["program", "--epochs=7"])
