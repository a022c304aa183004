"""Data augmentation on the device: what a batch goes through before the network sees it.

Every function is pure and runs inside `jit`, on bytes or on floats, before any normalisation; so the zeros of a padding
are black pixels. Each image of a batch has draws of its own.
"""

import functools
import types
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from experiments.common.raw_files import DataError

Shape = tuple[int, ...]


class Recipe(NamedTuple):
    """What is done to images.

    Attributes:
      train: (key, images [B, H, W, C]) -> images, at random and of the same type.
      test: images [..., H, W, C] -> images, the same for every call.
      shape: (H, W, C) of an image -> (H, W, C) of what both of them return.
    """

    train: Callable[[jax.Array, jax.Array], jax.Array]
    test: Callable[[jax.Array], jax.Array]
    shape: Callable[[Shape], Shape]


# Images [B, H, W, C] and a width -> the images with a border of that width.
zeros = functools.partial(jnp.pad, mode="constant")
edge = functools.partial(jnp.pad, mode="edge")


def flip(key: jax.Array, images: jax.Array) -> jax.Array:
    """Mirrors half of the images, left to right.

    Args:
      key: a random key.
      images: [B, H, W, C].

    Returns:
      Images of the same shape and type.
    """
    chosen = jax.random.bernoulli(key, shape=images.shape[:1])
    return jnp.where(chosen[:, None, None, None], images[:, :, ::-1], images)


def crop(key: jax.Array, images: jax.Array, *, size: tuple[int, int]) -> jax.Array:
    """Cuts a window out of each image, every position being as likely as any other.

    Args:
      key: a random key.
      images: [B, H, W, C].
      size: height and width of the windows, at most H and W.

    Returns:
      The windows, [B, *size, C].
    """
    number, *full, channels = images.shape
    room = jnp.array(full) - jnp.array(size)
    corners = jax.random.randint(key, (number, 2), 0, room + 1)

    def window(image: jax.Array, corner: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (*corner, 0), (*size, channels))

    return jax.vmap(window)(images, corners)


def shift(key: jax.Array, images: jax.Array, *, by: int, border: Callable[..., jax.Array] = zeros) -> jax.Array:
    """Moves each image by up to `by` pixels up or down, and left or right: a random crop of the padded image.

    Args:
      key: a random key.
      images: [B, H, W, C].
      by: the width of the padding.
      border: what appears at the sides, `zeros` or `edge`: the image's own outermost pixels.

    Returns:
      Images of the same shape and type.
    """
    padded = border(images, ((0, 0), (by, by), (by, by), (0, 0)))
    return crop(key, padded, size=images.shape[1:3])


def centre_crop(images: jax.Array, *, size: tuple[int, int]) -> jax.Array:
    """Cuts the middle out of images [..., H, W, C]: [..., *size, C]."""
    top, left = ((full - part) // 2 for full, part in zip(images.shape[-3:-1], size, strict=True))
    return images[..., top : top + size[0], left : left + size[1], :]


def _flip_then(move: Callable[[jax.Array, jax.Array], jax.Array]) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Returns a function that mirrors images and then moves them, with independent draws."""

    def train(key: jax.Array, images: jax.Array) -> jax.Array:
        for_flip, for_move = jax.random.split(key)
        return move(for_move, flip(for_flip, images))

    return train


def _flip_shift(by: int, border: Callable[..., jax.Array]) -> Recipe:
    return Recipe(_flip_then(functools.partial(shift, by=by, border=border)), test=lambda images: images, shape=tuple)


def _flip_crop(name: str, size: tuple[int, int]) -> Recipe:
    """A recipe that makes images smaller; `name` is for its error."""

    def shape(of_image: Shape) -> Shape:
        if of_image[0] < size[0] or of_image[1] < size[1]:
            raise DataError(
                f"the augmentation {name} cuts {size[0]} x {size[1]} pixels out of an image, "
                f"and these have {of_image[0]} x {of_image[1]}: choose another one"
            )
        return (*size, *of_image[2:])

    return Recipe(_flip_then(functools.partial(crop, size=size)), functools.partial(centre_crop, size=size), shape)


# The recipes that the literature trains with, by the name that a flag gives them.
RECIPES = types.MappingProxyType(
    {
        "none": Recipe(train=lambda key, images: images, test=lambda images: images, shape=tuple),
        "flip_crop2_edge": _flip_shift(2, edge),  # CIFAR-10 since arXiv:2103.17268
        "flip_crop4": _flip_shift(4, zeros),  # CIFAR-10 in arXiv:1810.12715 and arXiv:1906.06316
        "flip_crop4_edge": _flip_shift(4, edge),  # CIFAR-10 in arXiv:2002.12920; TinyImageNet since arXiv:2103.17268
        "flip_crop56": _flip_crop("flip_crop56", (56, 56)),  # TinyImageNet in arXiv:2002.12920
    }
)
