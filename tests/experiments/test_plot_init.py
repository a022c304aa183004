import json
import re

import jax.numpy as jnp
import numpy as np
import pytest

import jaxbound
from experiments import plot_init
from experiments.common import data, models
from experiments.common.errors import UserError

OPTIONS = {"dataset": "mnist_5k", "data_dir": "data", "radius": 0.1, "images": 2, "seeds": 2}


def images(*shape):
    return np.random.default_rng(0).uniform(size=shape).astype(np.float32)


def test_radii_are_those_of_the_layers():
    network = models.create("mlp", shape=(4, 4, 1), num_classes=10, seed=0)
    boxes = jaxbound.linf_ball(jnp.asarray(images(3, 4, 4, 1)), 0.2)
    params, low, high = network.variables["params"], *(np.reshape(end, (3, 16)) for end in boxes)
    expected = [np.mean((high - low) / 2)]
    for k in range(3):
        kernel, bias = (np.asarray(params[f"Dense_{k}"][name]) for name in ("kernel", "bias"))
        center, width = (low + high) / 2 @ kernel + bias, (high - low) / 2 @ np.abs(kernel)
        low, high = (np.maximum(center + sign * width, 0) for sign in (-1, 1))
        expected.append(np.mean(width))
    np.testing.assert_allclose(plot_init.mean_radii(network, network.variables, boxes), expected, rtol=1e-5)


def test_gains():
    growth = plot_init.Growth("mlp", "ibp", False, [0.5, 2.0, 4.0, 1.0])
    assert growth.gains == [2, 0.25]
    assert growth.mean_gain == pytest.approx(0.5**0.5)


@pytest.mark.slow(reason="the command prints it")
def test_the_mean_gain_is_near_one_only_with_ibps_weights():
    settings = {"radius": 0.1, "count": 2, "seeds": 1}
    gains = {
        name: plot_init.grow("mlp", name, images(4, 16, 16, 1), **settings)[0].mean_gain
        for name in ("torch", "orthogonal", "ibp")
    }
    assert gains["ibp"] == pytest.approx(1, abs=0.1)
    assert gains["orthogonal"] > gains["torch"] > 3


def test_batch_norm_is_measured_twice():
    without, normed = plot_init.grow("cnn_small_bn", "torch", images(8, 12, 12, 1), radius=0.1, count=2, seeds=1)
    assert not without.normalised and normed.normalised
    assert without.radii[0] == normed.radii[0] and normed.radii[1] > 2 * without.radii[1]


def test_files_and_table(tmp_path, monkeypatch):
    split = data.Split((255 * images(8, 12, 12, 1)).astype(np.uint8), np.zeros(8, np.int32))
    monkeypatch.setattr(data, "load", lambda *_: data.Dataset("mnist_5k", train=split, test=split))
    chosen = {"models": ["mlp", "cnn_small_bn"], "init": ["torch", "ibp"], "out": str(tmp_path / "new")}
    table = plot_init.run({**OPTIONS, **chosen}).splitlines()
    assert len(table) == 2 + 2 + 4
    assert re.fullmatch(r"\| mlp \| torch \| none \| [\d.]+ \| [\d.]+ [\d.]+ \|", table[2])
    assert re.fullmatch(r"\| cnn_small_bn \| ibp \| by the batch \| [\d.]+ \| [\d.]+ [\d.]+ \|", table[7])
    content = json.loads((tmp_path / "new" / "init.json").read_text(encoding="utf-8"))
    assert [(row["model"], row["init"], row["normalised"]) for row in content["growths"]] == [
        *(("mlp", init, False) for init in ("torch", "ibp")),
        *(("cnn_small_bn", init, norm) for init in ("torch", "ibp") for norm in (False, True)),
    ]
    assert content["seeds"] == 2 and len(content["growths"][0]["radii"]) == 4
    assert (tmp_path / "new" / "init.png").read_bytes().startswith(b"\x89PNG")


def test_an_unknown_network(tmp_path):
    with pytest.raises(UserError, match="there is no 'mpl': choose among dm_small"):
        plot_init.run({**OPTIONS, "models": ["mlp", "mpl"], "init": ["ibp"], "out": str(tmp_path)})
