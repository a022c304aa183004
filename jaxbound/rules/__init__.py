"""What each primitive is. Importing the package fills the registry."""

from jaxbound.rules import activations, arithmetic, discrete, indexing, piecewise, reduction, shape, smooth, special

__all__ = [
    "activations",
    "arithmetic",
    "discrete",
    "indexing",
    "piecewise",
    "reduction",
    "shape",
    "smooth",
    "special",
]
