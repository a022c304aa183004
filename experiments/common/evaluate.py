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
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

import jaxbound
from experiments.common import augment
from experiments.common.data import Split
from experiments.common.flags import Config
from experiments.common.methods import region
from experiments.common.models import Network
from experiments.common.placement import Placement, fetch
from experiments.common.train import pixels
from jaxbound import attacks

# (variables, examples as bytes, radius, one or [B]) -> whether each example holds, bool [B]
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


def exact(check: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Compiles a function whose matrix products have the highest precision, whatever training had."""

    @jax.jit
    @functools.wraps(check)
    def compiled(*args: Any) -> jax.Array:
        with jax.default_matmul_precision("highest"):
            return check(*args)

    return compiled


def verifier(network: Network, config: Config, bound: Callable[..., Any]) -> Check:
    """Compiles the check that a bound verifies an example on its set.

    Args:
      network: what is verified.
      config: the run's flags, which say of what kind the sets are.
      bound: a bound transform, such as `jaxbound.ibp`.
    """
    margins = margin_bounds(network, config, bound)
    return exact(lambda variables, examples, radius: jnp.all(margins(variables, examples, radius) > 0, axis=1))


def margin_bounds(network: Network, config: Config, bound: Callable[..., Any]) -> Callable[..., jax.Array]:
    """Lower bounds [B, K-1] of all margins, (variables, examples, radius, one or [B]) -> bounds; not compiled.

    Args:
      network, config, bound: as for `verifier`.
    """

    def one(variables: Any, image: jax.Array, label: jax.Array, *, radius: jax.Array) -> jax.Array:
        spec = jaxbound.margin_spec(label, network.num_classes)
        return bound(network.apply)(variables, region(image, radius, config), spec=spec)

    def margins(variables: Any, examples: Split, radius: Any) -> jax.Array:
        radii = jnp.broadcast_to(radius, examples.labels.shape)
        each = jax.vmap(functools.partial(one, variables))
        return each(images_of(examples, config), examples.labels, radius=radii)

    return margins


def radius_finder(check: Check, *, halvings: int) -> Callable[[Any, Split, Any], jax.Array]:
    """Compiles the bisection of all examples' certified radii together: (variables, examples, largest) -> [B].

    Each radius found is one at which the check held; 0 where it held at none that was tried.
    """

    @exact
    def radii(variables: Any, examples: Split, largest: Any) -> jax.Array:
        ends = jnp.broadcast_to(largest, examples.labels.shape)
        return jaxbound.certified_radius(lambda radius: check(variables, examples, radius), ends, halvings=halvings)

    return radii


def largest_radius(config: Config) -> float:
    """Where the search for certified radii begins: all pixels of an l_inf ball, a multiple of what training was for."""
    return 1.0 if config.norm == "inf" else max(1.0, 4 * config.radius)


def images_of(examples: Split, config: Config) -> jax.Array:
    """The images as the network sees them in an evaluation."""
    return pixels(augment.RECIPES[config.augmentation].test(examples.images))


def bounds(
    config: Config, sharding: jax.sharding.NamedSharding | None = None
) -> dict[str, tuple[Callable[..., Any], int]]:
    """The bounds that examples are verified by, from cheap to tight: a transform, and how many examples at a time.

    With the tight lines no bound is looser than IBP, which is what networks trained by IBP are verified with; others
    may be tighter on networks that were trained otherwise.

    Args:
      config: the run's flags.
      sharding: of the rows of linear bounds.
    """
    lines = {"tight": jaxbound.relax.tight, "adaptive": jaxbound.relax.adaptive}[config.eval_lines]
    crown = functools.partial(jaxbound.crown, relu=lines, chunk=config.crown_chunk, sharding=sharding)
    # Verified margins need not grow further.
    alpha_crown = functools.partial(jaxbound.alpha_crown, relu=lines, chunk=config.crown_chunk, until=0.0)
    return {
        "ibp": (jaxbound.ibp, config.eval_batch_size),
        "crown_ibp": (functools.partial(jaxbound.crown_ibp, relu=lines, sharding=sharding), config.eval_batch_size),
        "crown_lbp": (functools.partial(jaxbound.crown_lbp, relu=lines), config.crown_batch_size),
        "crown": (crown, config.crown_batch_size),
        "alpha_crown": (alpha_crown, config.crown_batch_size),
    }


def methods(network: Network, config: Config, sharding: jax.sharding.NamedSharding | None = None) -> tuple[Method, ...]:
    """The `bounds` that `--eval_methods` names, compiled.

    Args:
      network: what is verified.
      config: the run's flags.
      sharding: of the rows of linear bounds.
    """
    return tuple(
        Method(name, verifier(network, config, bound), batch_size)
        for name, (bound, batch_size) in bounds(config, sharding).items()
        if name in config.eval_methods
    )


def classifier(network: Network, config: Config) -> Check:
    """Compiles the check that an image itself is classified correctly; the radius is not used."""

    @exact
    def check(variables: Any, examples: Split, radius: Any) -> jax.Array:
        del radius
        logits = network.apply(variables, images_of(examples, config))
        return jax.vmap(attacks.margin)(logits, examples.labels) < 0

    return check


def attacker(network: Network, config: Config) -> Callable[..., jax.Array]:
    """Compiles the check that an attack fails: a `Check` with one more argument, the examples' indices [B]."""
    attacked = attacked_logits(network, config)

    @exact
    def check(variables: Any, examples: Split, radius: Any, indices: jax.Array) -> jax.Array:
        return jax.vmap(attacks.margin)(attacked(variables, examples, radius, indices), examples.labels) < 0

    return check


def attacked_logits(network: Network, config: Config) -> Callable[..., jax.Array]:
    """The logits [B, K] of the worst images that an attack finds; not compiled.

    The attack maximises the margin itself, not the cross-entropy, whose gradient vanishes where the network is sure.
    Its random starts depend on the seed and on an example's index alone.
    """

    def logits(variables: Any, examples: Split, radius: Any, indices: jax.Array) -> jax.Array:
        attack = attacks.pgd(
            functools.partial(network.apply, variables),
            objective=attacks.margin,
            steps=config.pgd_steps,
            step_size=config.pgd_step_size or 2.5 * radius / max(1, config.pgd_steps),
            restarts=config.pgd_restarts,
        )
        sets = jax.vmap(lambda image: region(image, radius, config))(images_of(examples, config))
        keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(config.seed)))(indices)
        return network.apply(variables, jax.vmap(attack)(keys, sets, examples.labels))

    return logits


@dataclasses.dataclass(frozen=True)
class Examples:
    """Examples that checks run over, and where they run.

    Attributes:
      split: the examples.
      placement: where a batch goes.
    """

    split: Split
    placement: Placement

    def passing(
        self, check: Callable[..., jax.Array], *, chosen: np.ndarray, batch_size: int, title: str
    ) -> np.ndarray:
        """Runs a check over chosen examples.

        Args:
          check: (examples, their indices) -> bool [B], for one batch.
          chosen, batch_size, title: as for `batches`.

        Returns:
          bool [N]: whether each example was chosen and passes.
        """
        result = np.zeros(self.split.size, bool)
        for batch, found in self.batches(check, chosen=chosen, batch_size=batch_size, title=title):
            result[batch] = found
        return result

    def batches(
        self, check: Callable[..., Any], *, chosen: np.ndarray, batch_size: int, title: str
    ) -> Iterator[tuple[np.ndarray, Any]]:
        """Runs a check over chosen examples in batches of one size, so that it compiles once.

        Args:
          check: (examples, their indices) -> arrays [B, ...], for one batch.
          chosen: indices of the examples to check.
          batch_size: B; made a multiple of the devices. The last batch is filled up with repetitions.
          title: of the progress bar.

        Yields:
          A batch's indices, without the repetitions, and the check's arrays of them.
        """
        size = self.placement.filled(batch_size)
        for start in tqdm.tqdm(range(0, len(chosen), size), desc=title, leave=False, disable=None):
            batch = chosen[start : start + size]
            padded = np.resize(batch, size)
            found = jax.tree.map(fetch, check(self.placement.take(self.split, padded), padded))
            yield batch, jax.tree.map(operator.itemgetter(slice(len(batch))), found)


def percent_failing(passed: np.ndarray) -> float:
    """The percentage of False."""
    return round(100 * float(np.mean(~passed)), 4)


class Evaluation:
    """Evaluates one network on one split.

    Args:
      network: what is evaluated.
      config: the run's flags.
      split: the examples.
      placement: where they are evaluated.
    """

    def __init__(self, network: Network, config: Config, split: Split, placement: Placement):
        self._config, self._examples = config, Examples(split, placement)
        self._methods = methods(network, config, placement.rows)
        self._classifier, self._attacker = classifier(network, config), attacker(network, config)
        self._all = np.arange(split.size)

    @property
    def cheapest(self) -> str:
        """The method that curves, certified radii and the choice of the best checkpoint go by."""
        return self._methods[0].name

    def _holds(self, check: Check, variables: Any, radius: float, **options: Any) -> np.ndarray:
        options = {"chosen": self._all, "batch_size": self._config.eval_batch_size, "title": "evaluating", **options}
        return self._examples.passing(lambda examples, _: check(variables, examples, radius), **options)

    def _verifies(self, method: Method, variables: Any, radius: float, **options: Any) -> np.ndarray:
        """Whether a method verifies each example, bool [N]."""
        return self._holds(method.check, variables, radius, batch_size=method.batch_size, **options)

    def clean_error(self, variables: Any) -> float:
        """The error on the images themselves."""
        return percent_failing(self._holds(self._classifier, variables, 0.0))

    def quick(self, variables: Any) -> dict[str, float]:
        """Clean error, and verified error by the cheapest method at the first radius: the figures during training."""
        (verified_error,) = self.curve(variables, self._config.eval_radii[:1])
        return {"test_clean_error": self.clean_error(variables), "test_verified_error": verified_error}

    def full(self, variables: Any) -> dict[str, Any]:
        """All errors: the content of `results.json`, less what describes the run."""
        correct = self._holds(self._classifier, variables, 0.0)
        radii = [self._at(variables, radius, correct, first=not i) for i, radius in enumerate(self._config.eval_radii)]
        return {
            "examples": self._examples.split.size,
            "clean_error": percent_failing(correct),
            "pgd_error": radii[0]["pgd_error"],
            "verified_error": radii[0]["verified_error"],
            "radii": radii,
        }

    def curve(self, variables: Any, radii: Iterable[float]) -> list[float]:
        """The verified error by the cheapest method at each radius."""
        return [percent_failing(self._verifies(self._methods[0], variables, radius)) for radius in radii]

    def certified_radii(self, variables: Any, chosen: Sequence[int], *, halvings: int = 12) -> np.ndarray:
        """The largest radius that the cheapest method verifies, for a few examples; 0 where none."""
        examples = Split(*(leaf[np.asarray(chosen)] for leaf in self._examples.split))
        finder = radius_finder(self._methods[0].check, halvings=halvings)
        return fetch(finder(variables, examples, largest_radius(self._config)))

    def attacked(self, variables: Any, radii: Iterable[float], *, size: int) -> list[float]:
        """The error under attack at each radius, of the first so many examples."""
        chosen = self._all[:size]
        correct = self._holds(self._classifier, variables, 0.0, chosen=chosen)
        return [percent_failing((correct & self._survives(variables, r, chosen))[chosen]) for r in radii]

    def _survives(self, variables: Any, radius: float, chosen: np.ndarray) -> np.ndarray:
        """Whether the attack fails, bool [N]; False for those that were not chosen."""
        return self._examples.passing(
            lambda examples, indices: self._attacker(variables, examples, radius, indices),
            chosen=chosen,
            batch_size=self._config.eval_batch_size,
            title=f"PGD at {radius:g}",
        )

    def _at(self, variables: Any, radius: float, correct: np.ndarray, *, first: bool) -> dict[str, Any]:
        """The errors at one radius."""
        survived = self._survives(variables, radius, self._all)
        verified, errors = np.zeros_like(correct), {}
        for method in self._methods:
            if method.name == "crown" and not (first or self._config.crown_everywhere):
                continue
            # The first method gets every example: one that it verified though misclassified would show in the figures.
            left = np.flatnonzero(correct & ~verified) if errors else self._all
            title = f"{method.name} at {radius:g}"
            verified |= self._verifies(method, variables, radius, chosen=left, title=title)
            errors[method.name] = percent_failing(verified)
        return {"radius": radius, "pgd_error": percent_failing(survived & correct), "verified_error": errors}
