"""Progressive distillation (Salimans and Ho, ICLR 2022, arXiv 2202.00512), one fold: 2 N steps become N.

x_s ~ q(x_s | x_0), s one of the student's N times and u the next one, m halfway:

    x_u     = two deterministic steps of the teacher, s -> m -> u                                            (1)
    x_tilde = the x_0 with which one deterministic step s -> u arrives at x_u          (appendix G)          (2)
    L       = E lambda(s) || x_0_theta(x_s, s) - x_tilde ||^2,   lambda = max(alpha^2 / sigma^2, 1)          (3)

(3)'s weight has the name "truncated_snr". Several folds are several runs, each with the last one's student as its
teacher: what SFDDM does in one. For diffusion models and flows: what sfddm.py says of the step from T of pinned bridges
with noise holds here, too.
"""

from collections.abc import Callable

import optax

from ibmd_jax.bridges import Bridge
from ibmd_jax.core.arrays import squared_error
from ibmd_jax.core.types import Array, Batch, Denoise, Key, Params
from ibmd_jax.methods.base import Method, Update, WeightFn, one_network, truncated_snr
from ibmd_jax.methods.sfddm import drawn_step, keys_of, run_chain, steps_of
from ibmd_jax.methods.teacher import Info
from ibmd_jax.samplers import dbim
from ibmd_jax.samplers.dbim import estimate_of


def progressive(
    denoise: Denoise,
    bridge: Bridge,
    optimizer: optax.GradientTransformation,
    *,
    times: Array,
    weight: WeightFn = truncated_snr,
    sampler: Callable[..., Array] = dbim,
    ema_decay: float = 0.999,
    accumulate: int = 1,
) -> Method:
    """One fold as a Method; `frozen` is the teacher's parameters, and `init` takes the student's first.

    Args:
        times: [N + 1], the student's times from T down to 0. weight: lambda of (3).
        sampler: how `sample` runs the student; deterministic, samplers.dbim, is what it was trained for.
        accumulate: parts of a batch whose gradients are averaged one after the other, to save memory.
    """

    def loss(theta: Params, teacher: Params, batch: Batch, key: Key) -> tuple[Array, tuple[()]]:
        if batch.x_0 is None:
            raise ValueError("progressive distillation needs clean images: the batch has no x_0")
        x_s, s, u, z = drawn_step(bridge, batch, times, key)
        x_u = steps_of(denoise, bridge, teacher, x_s, s, u, batch, 2, z)
        x_tilde = estimate_of(bridge, x_s, x_u, batch.x_T, s, u, z)
        found = denoise(theta, x_s, s, batch.x_T, batch.cond)
        return weight(bridge, s) * squared_error(found, x_tilde, batch.mask), ()

    init, step = one_network(keys_of, loss, Info, optimizer, ema_decay, accumulate)

    def sample(params: Params, key: Key, batch: Batch, steps: int = len(times) - 1) -> Array:
        return run_chain(denoise, bridge, params, key, batch, times, steps, sampler)

    return Method(init, step, sample, lambda state: state.ema, {"student": Update(1, step)})
