"""Bridge matching, which trains the slow model that the other methods distil.

    min_phi  E lambda(t) || x_0_phi(x_t, t [, x_T]) - x_0 ||^2,    x_t ~ q(x_t | x_0, x_T),  t ~ U[t_min, T]     (1)

I2SB (arXiv 2302.05872, equation 12) for a network that does not see x_T; DDBM (arXiv 2309.16948, equation 8) for one
that does.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import optax

from ibmd_jax.bridges import Bridge
from ibmd_jax.bridges.times import uniform, uniform_grid
from ibmd_jax.core.arrays import squared_error
from ibmd_jax.core.streams import first_key, stream
from ibmd_jax.core.types import Array, Batch, Denoise, Key, Params
from ibmd_jax.methods.base import Method, Update, WeightFn, one, one_network
from ibmd_jax.samplers import ancestral


class Info(NamedTuple):
    """Scalars of one step."""

    loss: Array
    grad_norm: Array


def denoising_error(
    denoise: Denoise,
    bridge: Bridge,
    params: Params,
    x_t: Array,
    t: Array,
    x_0: Array,
    batch: Batch,
    weight: WeightFn = one,
    dropout: Key | None = None,
) -> Array:
    """lambda(t) || x_0_phi(x_t, t [, x_T]) - x_0 ||^2 of every example, [B], inside the mask where there is one.

    batch.x_0 is not read. dropout: the key with which the network drops activations; None: it drops none.
    """
    drop = {} if dropout is None else {"key": dropout}
    found = denoise(params, x_t, t, batch.x_T, batch.cond, **drop)
    return weight(bridge, t) * squared_error(found, x_0, batch.mask)


def bridge_matching_loss(
    denoise: Denoise,
    bridge: Bridge,
    params: Params,
    batch: Batch,
    t: Array,
    key: Key,
    weight: WeightFn = one,
    dropout: bool = False,
) -> Array:
    """Equation (1) for every example, [B], inside the mask where there is one. batch.x_0 is required; t is [B].

    key: one, or [B]. dropout: whether the network drops activations, with a stream of it.
    """
    x_t = bridge.sample(key, batch.x_0, batch.x_T, t)
    drop = stream(first_key(key), "dropout") if dropout else None
    return denoising_error(denoise, bridge, params, x_t, t, batch.x_0, batch, weight, drop)


def teacher(
    denoise: Denoise,
    bridge: Bridge,
    optimizer: optax.GradientTransformation,
    *,
    weight: WeightFn = one,
    ema_decay: float = 0.999,
    t_min: float = 1e-3,
    time_sampler: Callable[..., Array] = uniform,
    sampler: Callable[..., Array] = ancestral,
    time_grid: Callable[..., Array] = uniform_grid,
    dropout: bool = False,
    accumulate: int = 1,
) -> Method:
    """Bridge matching as a Method; it has no frozen parameters; its `sample` also takes the number of steps.

    Args:
        sampler, time_grid: how `sample` restores; a function of samplers/ and one of bridges/times.py.
        dropout: whether `denoise` is to drop activations in training.
        accumulate: parts of a batch whose gradients are averaged one after the other, to save memory.
    """

    def draw(batch: Batch, key: Key) -> tuple[Array, Key]:
        examples = batch.x_T.shape[0]
        t = time_sampler(stream(key, "t"), examples, t_min, bridge.T)
        return t, jax.random.split(stream(key, "x_t"), examples)

    def loss(params: Params, frozen: None, batch: Batch, drawn: tuple[Array, Key]) -> tuple[Array, tuple[()]]:
        return bridge_matching_loss(denoise, bridge, params, batch, *drawn, weight, dropout), ()

    init, step = one_network(draw, loss, Info, optimizer, ema_decay, accumulate)

    def sample(params: Params, key: Key, batch: Batch, steps: int = 100) -> Array:
        def bound(x_t: Array, t: Array, x_T: Array, cond=None) -> Array:
            return denoise(params, x_t, t, x_T, cond)

        times = time_grid(steps, bridge.T)
        return sampler(bound, bridge, key, batch.x_T, times, mask=batch.mask, cond=batch.cond)

    return Method(init, step, sample, lambda state: state.ema, {"teacher": Update(1, step)})
