import jax.numpy as jnp
import pytest

import jaxbound
from jaxbound.testing import check_rule


def product_interval(x, y):
    ends = jnp.stack([a * b for a in x for b in y])
    return jaxbound.Interval(ends.min(axis=0), ends.max(axis=0))


def product_planes(x, y):
    return jaxbound.Relaxation(
        jaxbound.Affine((y.lower, x.lower), -x.lower * y.lower), jaxbound.Affine((y.lower, x.upper), -x.upper * y.lower)
    )


def test_a_right_rule_of_two_operands_passes():
    check_rule(jnp.multiply, jaxbound.Elementwise(product_interval, product_planes), operands=2)


def test_each_wrong_part_is_named():
    def shifted(part, by):
        def relax(x, y):
            planes = product_planes(x, y)
            side = getattr(planes, part)
            return planes._replace(**{part: side._replace(intercept=side.intercept + by)})

        return jaxbound.Elementwise(product_interval, relax)

    def nowhere(x, y):
        return jaxbound.Interval(x.lower * jnp.nan, x.upper)

    with pytest.raises(AssertionError, match=r"lower line is violated by 0\.\d+ at .* in \["):
        check_rule(jnp.multiply, shifted("lower", 0.5), operands=2)
    with pytest.raises(AssertionError, match="upper line is violated"):
        check_rule(jnp.multiply, shifted("upper", -0.5), operands=2)
    with pytest.raises(AssertionError, match="interval's lower end is violated by inf"):
        check_rule(jnp.multiply, jaxbound.Elementwise(nowhere, product_planes), operands=2)
