"""What each primitive is. Importing the package fills the registry."""

from jaxbound.rules import activations, arithmetic, piecewise, reduction, shape, smooth

__all__ = ["activations", "arithmetic", "piecewise", "reduction", "shape", "smooth"]
