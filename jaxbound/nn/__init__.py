"""Flax parts that certified training needs; the only part of the library that imports Flax."""

from jaxbound.nn.batch_norm import batch_statistics, nnx_batch_statistics, population_statistics, running_average
from jaxbound.nn.ramp import ParamRamp, clamp_ramps, perturb_ramps, ramp_slopes, start_ramps

__all__ = [
    "ParamRamp",
    "batch_statistics",
    "clamp_ramps",
    "nnx_batch_statistics",
    "perturb_ramps",
    "population_statistics",
    "ramp_slopes",
    "running_average",
    "start_ramps",
]
