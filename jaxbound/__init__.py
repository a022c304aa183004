"""jaxbound: pure functions that turn JAX functions into interval and linear-bound transformers."""

from jaxbound import attacks, initializers, losses, regularizers, relax, rules, schedules, testing
from jaxbound.adapters import per_example
from jaxbound.bounds import LinearBound, Planes
from jaxbound.methods.backward import crown_ibp, linear_bounds
from jaxbound.methods.crown import crown, crown_layer_bounds
from jaxbound.methods.explain import Explanation, explain
from jaxbound.methods.forward import crown_lbp, lbp, relaxed_crown
from jaxbound.methods.fused import fused_cross_entropy
from jaxbound.methods.interval import ibp, layer_bounds
from jaxbound.methods.lines import shared_lines, single_lines
from jaxbound.methods.locality import shared_rows, single_rows
from jaxbound.methods.optimized import Optimized, alpha_crown, optimized_lines
from jaxbound.methods.units import every_unit, unstable_units
from jaxbound.radii import certified_radius
from jaxbound.rules.activations import Elementwise, atomic, ramp
from jaxbound.rules.registry import UnsupportedError
from jaxbound.rules.relaxation import Affine, Freedom, Relaxation
from jaxbound.sets import Ball, Interval, SupportSet, contains, l1_ball, l2_ball, linf_ball, midpoint, radius, tightest
from jaxbound.specs import identity_spec, margin_spec, runner_up_spec, worst_case_logits
from jaxbound.support import substitutions, support_set

__version__ = "0.1.0"

del rules

__all__ = [
    "Affine",
    "Ball",
    "Elementwise",
    "Freedom",
    "Explanation",
    "Interval",
    "LinearBound",
    "Optimized",
    "Planes",
    "Relaxation",
    "SupportSet",
    "UnsupportedError",
    "alpha_crown",
    "atomic",
    "attacks",
    "certified_radius",
    "contains",
    "crown",
    "crown_ibp",
    "crown_layer_bounds",
    "crown_lbp",
    "every_unit",
    "explain",
    "fused_cross_entropy",
    "ibp",
    "identity_spec",
    "initializers",
    "l1_ball",
    "l2_ball",
    "layer_bounds",
    "lbp",
    "linear_bounds",
    "linf_ball",
    "losses",
    "margin_spec",
    "midpoint",
    "optimized_lines",
    "per_example",
    "radius",
    "ramp",
    "regularizers",
    "relax",
    "relaxed_crown",
    "runner_up_spec",
    "schedules",
    "shared_lines",
    "shared_rows",
    "single_lines",
    "single_rows",
    "substitutions",
    "support_set",
    "testing",
    "tightest",
    "unstable_units",
    "worst_case_logits",
]
