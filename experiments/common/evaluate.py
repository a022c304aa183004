"""Clean, attacked and verified errors of a network, in percent.

An example counts as an error unless its label's logit is strictly the largest: of the image itself (clean), of the
worst image that the attack finds (PGD), or for every image of the box by a bound (verified). Whatever is verified is
also classified correctly, and every example is attacked, verified or not, so that clean <= PGD <= verified error is a
check of the bounds and no tautology.

Bounds run as a cascade from cheap to tight: a later method sees only the examples that are classified correctly and
that no method before it verified, and its figure counts those verified before.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

import jaxbound
from experiments.common.data import Split
from experiments.common.flags import Config
from experiments.common.models import Apply
from experiments.common.train import pixels
from jaxbound import attacks

# (params, examples as bytes, radius, one or [B]) -> whether each example holds, bool [B]
Check = Callable[[Any, Split, Any], jax.Array]


@dataclasses.dataclass(frozen=True)
class Method:
    """A bound that verifies examples.

    Attributes:
      name: its key in the results.
      check: the compiled check.
      batch_size: examples per call.
    """

    name: str
    check: Check
    batch_size: int


def verifier(apply: Apply, bound: Callable[..., Any], *, num_classes: int) -> Check:
    """Compiles the check that a bound verifies an example on its box.

    Args:
      apply: the network.
      bound: a bound transform, such as `jaxbound.ibp`.
      num_classes: K.
    """

    def verified(params: Any, image: jax.Array, label: jax.Array, *, radius: jax.Array) -> jax.Array:
        box, spec = jaxbound.linf_ball(image, radius), jaxbound.margin_spec(label, num_classes)
        return jnp.all(bound(apply)(params, box, spec=spec) > 0)

    @jax.jit
    def check(params: Any, examples: Split, radius: Any) -> jax.Array:
        radii = jnp.broadcast_to(radius, examples.labels.shape)
        each = jax.vmap(functools.partial(verified, params))
        return each(pixels(examples.images), examples.labels, radius=radii)

    return check


def methods(apply: Apply, config: Config, *, num_classes: int) -> tuple[Method, ...]:
    """The bounds that `--eval_methods` names, from cheap to tight.

    The lower lines of ReLU are the tight ones: with these, no bound on a network trained by IBP is looser than IBP.
    """
    tight = jaxbound.relax.tight
    known = {
        "ibp": (jaxbound.ibp, config.eval_batch_size),
        "crown_ibp": (functools.partial(jaxbound.crown_ibp, relu=tight), config.eval_batch_size),
        "crown": (
            functools.partial(jaxbound.crown, relu=tight, chunk=config.crown_chunk),
            config.crown_batch_size,
        ),
    }
    return tuple(
        Method(name, verifier(apply, bound, num_classes=num_classes), batch_size)
        for name, (bound, batch_size) in known.items()
        if name in config.eval_methods
    )


def classifier(apply: Apply) -> Check:
    """Compiles the check that an image itself is classified correctly; the radius is not used."""

    @jax.jit
    def check(params: Any, examples: Split, radius: Any) -> jax.Array:
        del radius
        return jax.vmap(attacks.margin)(apply(params, pixels(examples.images)), examples.labels) < 0

    return check


def attacker(apply: Apply, config: Config) -> Callable[..., jax.Array]:
    """Compiles the check that an attack fails: a `Check` with one more argument, `keys`, one per example.

    The attack maximises the margin itself, not the cross-entropy, whose gradient vanishes where the network is sure.
    """

    @jax.jit
    def check(params: Any, examples: Split, radius: Any, *, keys: jax.Array) -> jax.Array:
        attack = attacks.pgd(
            functools.partial(apply, params),
            objective=attacks.margin,
            steps=config.pgd_steps,
            step_size=config.pgd_step_size,
            restarts=config.pgd_restarts,
        )
        found = jax.vmap(attack)(keys, jaxbound.linf_ball(pixels(examples.images), radius), examples.labels)
        return jax.vmap(attacks.margin)(apply(params, found), examples.labels) < 0

    return check


def holds(check: Callable[..., jax.Array], split: Split, *, chosen: np.ndarray, batch_size: int, title: str) -> Any:
    """Runs a check over chosen examples in batches of one size, so that it compiles once.

    Args:
      check: (examples, their indices) -> bool [B], for one batch.
      split: the examples.
      chosen: indices of the examples to check.
      batch_size: B; the last batch is filled up with repetitions.
      title: of the progress bar.

    Returns:
      bool [N]: whether each example was chosen and holds.
    """
    result = np.zeros(split.size, bool)
    bar = tqdm.tqdm(range(0, len(chosen), batch_size), desc=title, leave=False, disable=None)
    for start in bar:
        batch = chosen[start : start + batch_size]
        padded = np.resize(batch, batch_size)
        result[batch] = np.asarray(check(_part(split, padded), padded))[: len(batch)]
    return result


def _part(split: Split, chosen: np.ndarray) -> Split:
    return Split(split.images[chosen], split.labels[chosen])


def percent_failing(passed: np.ndarray) -> float:
    """The percentage of False."""
    return round(100 * float(np.mean(~passed)), 4)


class Evaluation:
    """Evaluates one network on one split.

    Args:
      apply: the network.
      config: the run's flags.
      split: the examples.
      num_classes: K.
    """

    def __init__(self, apply: Apply, config: Config, split: Split, *, num_classes: int):
        self._config, self._split = config, split
        self._methods = methods(apply, config, num_classes=num_classes)
        self._ibp = verifier(apply, jaxbound.ibp, num_classes=num_classes)
        self._classifier, self._attacker = classifier(apply), attacker(apply, config)
        self._all = np.arange(split.size)

    def _holds(self, check: Check, params: Any, radius: float, **options: Any) -> np.ndarray:
        options = {"chosen": self._all, "batch_size": self._config.eval_batch_size, "title": "evaluating", **options}
        return holds(lambda examples, _: check(params, examples, radius), self._split, **options)

    def quick(self, params: Any) -> dict[str, float]:
        """Clean error, and verified error by the cheapest method at the first radius: the figures during training."""
        first = self._methods[0]
        radius = self._config.eval_radii[0]
        verified = self._holds(first.check, params, radius, batch_size=first.batch_size)
        return {
            "test_clean_error": percent_failing(self._holds(self._classifier, params, 0.0)),
            "test_verified_error": percent_failing(verified),
        }

    def full(self, params: Any) -> dict[str, Any]:
        """All errors: the content of `results.json`, less what describes the run."""
        correct = self._holds(self._classifier, params, 0.0)
        radii = [self._at(params, radius, correct, first=not i) for i, radius in enumerate(self._config.eval_radii)]
        return {
            "examples": self._split.size,
            "clean_error": percent_failing(correct),
            "pgd_error": radii[0]["pgd_error"],
            "verified_error": radii[0]["verified_error"],
            "radii": radii,
        }

    def curve(self, params: Any, radii: Iterable[float]) -> list[float]:
        """The verified error by IBP at each radius."""
        return [percent_failing(self._holds(self._ibp, params, radius)) for radius in radii]

    def certified_radii(self, params: Any, chosen: Sequence[int], *, halvings: int = 12) -> np.ndarray:
        """The largest radius in [0, 1] that IBP verifies, for a few examples, by bisection; 0 where none."""
        examples = _part(self._split, np.asarray(chosen))
        low, high = np.zeros(len(chosen)), np.ones(len(chosen))
        for _ in range(halvings):
            middle = (low + high) / 2
            passed = np.asarray(self._ibp(params, examples, middle.astype(np.float32)))
            low, high = np.where(passed, middle, low), np.where(passed, high, middle)
        return low

    def _at(self, params: Any, radius: float, correct: np.ndarray, *, first: bool) -> dict[str, Any]:
        """The errors at one radius."""
        keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(self._config.seed)))(self._all)
        survived = holds(
            lambda examples, batch: self._attacker(params, examples, radius, keys=keys[batch]),
            self._split,
            chosen=self._all,
            batch_size=self._config.eval_batch_size,
            title=f"PGD at {radius:g}",
        )
        verified, errors = np.zeros_like(correct), {}
        for method in self._methods:
            if method.name == "crown" and not (first or self._config.crown_everywhere):
                continue
            # The first method gets every example: one that it verified though misclassified would show in the figures.
            left = np.flatnonzero(correct & ~verified) if errors else self._all
            options = {"chosen": left, "batch_size": method.batch_size, "title": f"{method.name} at {radius:g}"}
            verified |= self._holds(method.check, params, radius, **options)
            errors[method.name] = percent_failing(verified)
        return {"radius": radius, "pgd_error": percent_failing(survived & correct), "verified_error": errors}
