import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.common import augment
from experiments.common.raw_files import DataError

KEY = jax.random.key(3)
SHAPE = (9, 11, 3)

# Name of a recipe -> width of the padding, and NumPy's name of its kind.
SHIFTS = {"flip_crop2_edge": (2, "edge"), "flip_crop4": (4, "constant"), "flip_crop4_edge": (4, "edge")}


def make_images(number, *, shape=SHAPE):
    """Images of random bytes, whose windows all differ."""
    return np.random.default_rng(0).integers(1, 256, (number, *shape), np.uint8)


def windows(image, size):
    """All windows of one image, by their corner."""
    height, width = size
    return {
        (top, left): image[top : top + height, left : left + width]
        for top in range(image.shape[0] - height + 1)
        for left in range(image.shape[1] - width + 1)
    }


def corner_of(window, image):
    """Where a window was cut out of an image; it has to be one of its windows, and of no other place."""
    found = [corner for corner, other in windows(image, window.shape[:2]).items() if np.array_equal(window, other)]
    assert len(found) == 1
    return found[0]


def padded(image, width, mode):
    return np.pad(image, ((width, width), (width, width), (0, 0)), mode=mode)


def draws(found, image, width, mode):
    """Recovers whether an image was mirrored, and its corner, by trying both."""
    tried = {mirrored: padded(image[:, ::-1] if mirrored else image, width, mode) for mirrored in (False, True)}
    hits = [
        (mirrored, corner)
        for mirrored, source in tried.items()
        for corner, window in windows(source, found.shape[:2]).items()
        if np.array_equal(window, found)
    ]
    assert len(hits) == 1
    return hits[0]


def test_flip_mirrors_some_and_leaves_the_others():
    images = make_images(400)
    found = np.asarray(augment.flip(KEY, images))
    mirrored = np.array([np.array_equal(new, old[:, ::-1]) for new, old in zip(found, images, strict=True)])
    kept = np.array([np.array_equal(new, old) for new, old in zip(found, images, strict=True)])
    assert (mirrored ^ kept).all()
    assert 160 <= mirrored.sum() <= 240  # four standard deviations of a fair coin
    np.testing.assert_array_equal(mirrored, jax.random.bernoulli(KEY, shape=(400,)))


def test_crop_cuts_out_every_window():
    images = make_images(300, shape=(6, 8, 2))
    found = np.asarray(augment.crop(KEY, images, size=(4, 5)))
    assert found.shape == (300, 4, 5, 2)
    corners = [corner_of(window, image) for window, image in zip(found, images, strict=True)]
    assert set(corners) == {(top, left) for top in range(3) for left in range(4)}
    counts = np.unique(corners, axis=0, return_counts=True)[1]
    assert counts.min() > 5 and counts.max() < 50  # 25 expected, standard deviation below 5


def test_crop_to_the_whole_image_changes_nothing():
    images = make_images(5)
    np.testing.assert_array_equal(augment.crop(KEY, images, size=SHAPE[:2]), images)


def test_crop_larger_than_the_image():
    with pytest.raises((TypeError, ValueError)):
        augment.crop(KEY, make_images(2), size=(10, 10))


@pytest.mark.parametrize(("border", "mode"), [(augment.zeros, "constant"), (augment.edge, "edge")])
@pytest.mark.parametrize("by", [0, 1, 3])
def test_shift_is_a_crop_of_the_padded_image(border, mode, by):
    images = make_images(200)
    found = np.asarray(augment.shift(KEY, images, by=by, border=border))
    sources = [padded(image, by, mode) for image in images]
    corners = [corner_of(window, source) for window, source in zip(found, sources, strict=True)]
    assert set(corners) == {(top, left) for top in range(2 * by + 1) for left in range(2 * by + 1)}


@pytest.mark.parametrize("name", SHIFTS)
def test_shifting_recipes(name):
    width, mode = SHIFTS[name]
    images = make_images(150)
    found = np.asarray(augment.RECIPES[name].train(KEY, images))
    recovered = [draws(new, old, width, mode) for new, old in zip(found, images, strict=True)]
    mirrored = np.array([flip for flip, _ in recovered])
    corners = np.array([corner for _, corner in recovered])
    assert 50 <= mirrored.sum() <= 100
    np.testing.assert_array_equal((corners.min(0), corners.max(0)), [(0, 0), (2 * width, 2 * width)])
    # Down and across, and moving and mirroring, are drawn independently.
    correlations = np.corrcoef(np.column_stack([mirrored, corners]).T)[np.triu_indices(3, 1)]
    assert (abs(correlations) < 0.35).all()  # four standard deviations of independent draws


def test_cropping_recipe():
    images = make_images(60, shape=(64, 64, 3))
    recipe = augment.RECIPES["flip_crop56"]
    found = np.asarray(recipe.train(KEY, images))
    recovered = [draws(new, old, 0, "edge") for new, old in zip(found, images, strict=True)]
    corners = np.array([corner for _, corner in recovered])
    np.testing.assert_array_equal((corners.min(0), corners.max(0)), [(0, 0), (8, 8)])
    np.testing.assert_array_equal(recipe.test(images), images[:, 4:60, 4:60])


@pytest.mark.parametrize(("size", "rows", "columns"), [((5, 5), (2, 7), (3, 8)), ((8, 10), (0, 8), (0, 10))])
@pytest.mark.parametrize("lead", [(), (2,), (2, 3)])
def test_centre_crop(size, rows, columns, lead):
    images = make_images(6)[: np.prod(lead, dtype=int)].reshape(*lead, *SHAPE)
    found = augment.centre_crop(images, size=size)
    np.testing.assert_array_equal(found, images[..., slice(*rows), slice(*columns), :])


@pytest.mark.parametrize("name", augment.RECIPES)
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_recipes_keep_the_type_and_tell_the_shape(name, dtype):
    recipe = augment.RECIPES[name]
    images = jax.ShapeDtypeStruct((4, 64, 70, 3), dtype)
    expected = (4, *recipe.shape((64, 70, 3)))
    for found in (jax.eval_shape(recipe.train, KEY, images), jax.eval_shape(recipe.test, images)):
        assert (found.shape, found.dtype) == (expected, dtype)


@pytest.mark.parametrize("name", augment.RECIPES)
def test_bytes_and_floats_get_the_same_draws(name):
    train = augment.RECIPES[name].train
    images = make_images(16, shape=(64, 64, 3))
    as_floats = train(KEY, jnp.asarray(images, jnp.float32))
    np.testing.assert_array_equal(train(KEY, jnp.asarray(images)), as_floats)


@pytest.mark.parametrize("name", augment.RECIPES)
def test_the_key_decides(name):
    train = augment.RECIPES[name].train
    images = jnp.asarray(make_images(16, shape=(64, 64, 3)))
    first = train(KEY, images)
    np.testing.assert_array_equal(first, train(KEY, images))
    np.testing.assert_array_equal(first, jax.jit(train)(KEY, images))
    other = train(jax.random.key(4), images)
    assert np.array_equal(first, other) == (name == "none")


@pytest.mark.parametrize("name", sorted(set(augment.RECIPES) - {"none"}))
def test_images_of_a_batch_have_draws_of_their_own(name):
    images = jnp.asarray(np.repeat(make_images(1, shape=(64, 64, 3)), 16, axis=0))
    found = np.asarray(augment.RECIPES[name].train(KEY, images))
    assert len(np.unique(found.reshape(16, -1), axis=0)) > 8


def test_no_augmentation():
    images = jnp.asarray(make_images(3))
    recipe = augment.RECIPES["none"]
    assert recipe.train(KEY, images) is images
    assert recipe.test(images) is images


@pytest.mark.parametrize("shape", [(28, 28, 1), (64, 32, 3), (55, 64, 3)])
def test_images_that_are_too_small(shape):
    message = f"the augmentation flip_crop56 cuts 56 x 56 pixels .* these have {shape[0]} x {shape[1]}: choose another"
    with pytest.raises(DataError, match=message):
        augment.RECIPES["flip_crop56"].shape(shape)


def test_recipes_are_frozen():
    with pytest.raises(TypeError):
        augment.RECIPES["none"] = augment.RECIPES["flip_crop4"]


def test_it_runs_inside_a_compiled_step():
    """Without a transfer to the host, and for a key that is made in the step."""

    @functools.partial(jax.jit, static_argnums=0)
    def step(name, images, number):
        return augment.RECIPES[name].train(jax.random.fold_in(KEY, number), images)

    images = jnp.asarray(make_images(8))
    expected = augment.RECIPES["flip_crop4"].train(jax.random.fold_in(KEY, 7), images)
    np.testing.assert_array_equal(step("flip_crop4", images, 7), expected)
