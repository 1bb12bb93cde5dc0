"""Single-fold distillation to any number of steps (SFDDM; Hong et al., arXiv 2405.14961).

The student's chain has T' steps on a subsequence 0 = phi_0 < ... < phi_T' = T of the teacher's times,

    alpha'_bar_i = alpha_bar_{phi_i},   so   q'(x'_i | x_0) = q(x_{phi_i} | x_0)                             (1)

and everything else is DDPM on alpha'_i = alpha'_bar_i / alpha'_bar_{i-1}: its posterior is the teacher's bridge's,
q(x_{phi_{i-1}} | x_0, x_{phi_i}). Both networks see one x_s, made from one x_0 and one eps at s = phi_i,

    L = d( w (x_0_student - x_0_teacher) ) + gamma d( hidden_student - hidden_teacher ),   d = L1 or L2      (2)

The paper's text was not at hand. Its authors' code takes for `hidden` the activations before the last layer
("features"). But then a student that equals the teacher has L = 0 for every T': it learns to be the teacher on
fewer steps, which the teacher can do untrained. The other reading of "distance between hidden variables" makes them
the chain's own latents ("latents"): with u = phi_{i-1},

    hidden_student = x_u in one deterministic step from x_s,   hidden_teacher = x_u in `chain` such steps    (3)

and the minimum of this term alone (the first one pulls back to the teacher) is a student whose one deterministic step
is `chain` steps of the teacher: derived here, not the paper's formula. Not so on a pinned bridge with noise, in the
step from T: it draws noise that the student does not see, which learns the mean over it; and that chain is one of
teachers that see x_T (samplers/dbim.py).
The code's last step starts at phi = T - T/T', where x_s still shows x_0, though sampling starts from noise; here the
chain ends at T itself.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from ibmd_jax.bridges import Bridge
from ibmd_jax.core.arrays import composite, expand, mean_inside
from ibmd_jax.core.streams import normal, stream
from ibmd_jax.core.types import Array, Batch, Denoise, Key, Params
from ibmd_jax.methods.base import Method, Update, WeightFn, one, one_network
from ibmd_jax.samplers import dbim
from ibmd_jax.samplers.dbim import carry_on

# jnp.abs has a slope of 1 at 0; this one of 0.
DISTANCES: dict[str, Callable[[Array], Array]] = {"l1": lambda x: x * jnp.sign(x), "l2": jnp.square}
HIDDEN = ("none", "features", "latents")


class Info(NamedTuple):
    """Scalars of one step; output and hidden are the two terms of (2), before their weights."""

    loss: Array
    grad_norm: Array
    output: Array
    hidden: Array


def steps_of(
    denoise: Denoise,
    bridge: Bridge,
    params: Params,
    x_s: Array,
    s: Array,
    u: Array,
    batch: Batch,
    steps: int,
    z: Array,
    first: Array | None = None,
) -> Array:
    """x_u after `steps` deterministic steps from x_s, equally spaced in time, as samplers.dbim makes them.

    Returns: [B, H, W, C]. s > u: [B]. first: the estimate at x_s, where it is known.
    """

    def at(j: Array) -> Array:
        return jnp.where(j == steps, u, s + (u - s) * (j.astype(s.dtype) / steps))

    def body(x: Array, j: Array) -> tuple[Array, None]:
        return advance(x, denoise(params, x, at(j), batch.x_T, batch.cond), j), None

    def advance(x: Array, x_0: Array, j: Array) -> Array:
        x_0 = composite(x_0, batch.x_T, batch.mask)
        return carry_on(bridge, x, x_0, batch.x_T, at(j), at(j + 1), z)

    begin = 0 if first is None else 1
    x_s = x_s if first is None else advance(x_s, first, jnp.int32(0))
    return jax.lax.scan(body, x_s, jnp.arange(begin, steps))[0]


def keys_of(batch: Batch, key: Key) -> Key:
    """A key for every example."""
    return jax.random.split(key, batch.x_T.shape[0])


def drawn_step(bridge: Bridge, batch: Batch, times: Array, key: Key) -> tuple[Array, Array, Array, Array]:
    """A random step of the chain for every example: x_s [B, H, W, C], s and u [B], and the noise of a boot at T.

    times: [T' + 1], from T down to 0. key: [B].
    """
    index = jax.vmap(lambda k: jax.random.randint(k, (), 0, len(times) - 1))(stream(key, "index"))
    s, u = times[index], times[index + 1]
    x_s = bridge.sample(stream(key, "x_s"), batch.x_0, batch.x_T, s)
    return x_s, s, u, normal(stream(key, "boot"), x_s.shape, x_s.dtype)


def sfddm(
    denoise: Denoise,
    bridge: Bridge,
    optimizer: optax.GradientTransformation,
    *,
    times: Array,
    hidden: str = "features",
    output_weight: float = 1.0,
    hidden_weight: float = 1.0,
    chain: int = 4,
    distance: str = "l1",
    weight: WeightFn = one,
    sampler: Callable[..., Array] = dbim,
    ema_decay: float = 0.999,
    accumulate: int = 1,
) -> Method:
    """SFDDM as a Method; `frozen` is the teacher's parameters, and `init` takes the student's first.

    Args:
        times: [T' + 1], the student's chain phi from T down to 0: any decreasing set.
        hidden: "features", "latents" (3), or "none". chain: the teacher's steps in (3), c for its whole chain.
        output_weight, hidden_weight: of the two terms of (2), gamma being the second. weight: w^2 by its name.
        distance: d, "l1" or "l2".
        sampler: how `sample` runs the student's chain: samplers.ancestral is DDPM's, samplers.dbim DDIM's.
        accumulate: parts of a batch whose gradients are averaged one after the other, to save memory.
    A masked bridge counts the hole alone in all terms but that of the features.
    Raises: ValueError for an unknown hidden or distance, for a chain of no step, and for weights that are all 0.
    """
    if hidden not in HIDDEN or distance not in DISTANCES:
        raise ValueError(f"hidden = {hidden!r}, distance = {distance!r}: they are of {HIDDEN} and {tuple(DISTANCES)}")
    if chain < 1 or int(chain) != chain or not (output_weight or (hidden_weight and hidden != "none")):
        raise ValueError(f"chain = {chain}, output_weight = {output_weight}: nothing would be learnt")
    d = DISTANCES[distance]

    def loss(theta: Params, teacher: Params, batch: Batch, key: Key) -> tuple[Array, tuple[Array, Array]]:
        """(2) and its two terms."""
        if batch.x_0 is None:
            raise ValueError("sfddm needs clean images: the batch has no x_0")
        x_s, s, u, z = drawn_step(bridge, batch, times, key)
        more = {"features": True} if hidden == "features" else {}
        student = denoise(theta, x_s, s, batch.x_T, batch.cond, **more)
        target = denoise(teacher, x_s, s, batch.x_T, batch.cond, **more)
        unlike = jnp.zeros(x_s.shape[:1])
        if hidden == "features":
            (student, mine), (target, its) = student, target
            unlike = mean_inside(d(mine - its))
        if hidden == "latents":
            mine = carry_on(bridge, x_s, student, batch.x_T, s, u, z)
            its = steps_of(denoise, bridge, teacher, x_s, s, u, batch, chain, z, target)
            unlike = mean_inside(d(mine - its), batch.mask)
        w = expand(jnp.sqrt(weight(bridge, s)), x_s)
        output = mean_inside(d(w * (student - target)), batch.mask)
        return output_weight * output + hidden_weight * unlike, (output, unlike)

    init, step = one_network(keys_of, loss, Info, optimizer, ema_decay, accumulate)

    def sample(params: Params, key: Key, batch: Batch, steps: int = len(times) - 1) -> Array:
        return run_chain(denoise, bridge, params, key, batch, times, steps, sampler)

    return Method(init, step, sample, lambda state: state.ema, {"student": Update(1, step)})


def run_chain(
    denoise: Denoise,
    bridge: Bridge,
    params: Params,
    key: Key,
    batch: Batch,
    times: Array,
    steps: int,
    sampler: Callable[..., Array],
) -> Array:
    """Restores, or generates, a batch along a student's own times. Raises: ValueError for other steps than theirs."""
    if steps != len(times) - 1:
        raise ValueError(f"this student was trained for {len(times) - 1} steps, not {steps}")

    def bound(x_t: Array, t: Array, x_T: Array, cond=None) -> Array:
        return denoise(params, x_t, t, x_T, cond)

    return sampler(bound, bridge, key, batch.x_T, times, mask=batch.mask, cond=batch.cond)
