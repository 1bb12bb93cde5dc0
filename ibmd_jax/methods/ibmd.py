"""Inverse Bridge Matching Distillation (IBMD; Gushchin et al., ICML 2025, arXiv 2502.01362).

A one-step generator G_theta whose own bridge-matching problem has the teacher as its solution, found from corrupted
images x_T alone:

    x_0 = G_theta(x_T, z),   z ~ N(0, I),   t ~ U[t_min, T],   x_t ~ q(x_t | x_0, x_T)                      (1)
    D(phi)   = E lambda(t) || x_0_phi(x_t, t [, x_T]) - x_0 ||^2                  the auxiliary network's loss   (2)
    L(theta) = E lambda(t) || x_0_*  (x_t, t [, x_T]) - x_0 ||^2 - min_phi D(phi)         Theorems 3.2 and 3.4   (3)

Each step makes L updates of phi on (2), theta fixed, then one of theta on (3), phi fixed (algorithm 1). The gradient
of (3) reaches theta through x_0 and through x_t; cutting the second path leaves the VSD / DMD direction instead.
The minus sign rewards Var[x_0 | x_t], which keeps the student from collapsing onto the mean.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from ibmd_jax.bridges import Bridge
from ibmd_jax.bridges.times import uniform
from ibmd_jax.core.arrays import ema_update, squared_error
from ibmd_jax.core.streams import step_key, stream
from ibmd_jax.core.types import Array, Batch, Denoise, Key, Params
from ibmd_jax.methods.base import Method, WeightFn, one, split_batch
from ibmd_jax.methods.teacher import bridge_matching_loss
from ibmd_jax.samplers import one_step


class State(NamedTuple):
    """step counts finished steps; `ema` averages the student, and is what is deployed."""

    step: Array
    student: Params
    auxiliary: Params
    ema: Params
    student_optimizer: optax.OptState
    auxiliary_optimizer: optax.OptState


class Info(NamedTuple):
    """Scalars of one step; loss = teacher_term - auxiliary_term, auxiliary_loss is the mean over the L updates."""

    loss: Array
    teacher_term: Array
    auxiliary_term: Array
    auxiliary_loss: Array
    student_grad_norm: Array
    auxiliary_grad_norm: Array


def generate(denoise: Denoise, bridge: Bridge, theta: Params, batch: Batch, key: Key, noise_channels: int = 0) -> Array:
    """x_0 = G_theta(x_T, z) of equation (1): [B, H, W, C], equal to x_T outside the mask."""

    def bound(x_t: Array, t: Array, x_T: Array, cond=None, z: Array | None = None) -> Array:
        return denoise(theta, x_t, t, x_T, cond, z)

    return one_step(bound, bridge, key, batch.x_T, noise_channels=noise_channels, mask=batch.mask, cond=batch.cond)


def student_terms(
    denoise: Denoise,
    bridge: Bridge,
    teacher: Params,
    phi: Params,
    x_0: Array,
    batch: Batch,
    t: Array,
    key: Key,
    weight: WeightFn = one,
) -> tuple[Array, Array]:
    """The two terms of equation (3) for every example, each [B], differentiable in x_0 alone.

    x_0 stands for G_theta(x_T, z); batch.x_0 is never read.
    """
    teacher, phi = jax.lax.stop_gradient((teacher, phi))
    x_t = bridge.sample(key, x_0, batch.x_T, t)

    def error(params: Params) -> Array:
        return weight(bridge, t) * squared_error(denoise(params, x_t, t, batch.x_T, batch.cond), x_0, batch.mask)

    return error(teacher), error(phi)


def ibmd(
    denoise: Denoise,
    bridge: Bridge,
    student_optimizer: optax.GradientTransformation,
    auxiliary_optimizer: optax.GradientTransformation,
    *,
    auxiliary_updates: int = 5,
    student_weight: WeightFn = one,
    auxiliary_weight: WeightFn = one,
    noise_channels: int = 0,
    ema_decay: float = 0.99,
    t_min: float = 1e-3,
    time_sampler: Callable[..., Array] = uniform,
) -> Method:
    """One-step IBMD as a Method. `frozen` is the teacher's parameters; batches need no x_0.

    Args:
        auxiliary_updates: L of algorithm 1. A step consumes L + 1 batches.
        student_weight, auxiliary_weight: lambda(t) of (3) and of (2); they may differ, since the minimiser of (2)
            does not depend on its lambda.
        noise_channels: channels of z; 0 where x_T itself is noisy.
    """

    def init(start: tuple[Params, Params]) -> State:
        """start: the student's first parameters (see networks.generator) and the auxiliary's (the teacher's)."""
        student, auxiliary = start
        return State(
            jnp.zeros((), jnp.int32),
            student,
            auxiliary,
            jax.tree.map(jnp.copy, student),
            student_optimizer.init(student),
            auxiliary_optimizer.init(auxiliary),
        )

    def times(key: Key, batch: Batch) -> Array:
        return time_sampler(stream(key, "t"), batch.x_T.shape[0], t_min, bridge.T)

    def step(state: State, teacher: Params, batch: Batch, key: Key) -> tuple[State, Info]:
        batches = split_batch(batch._replace(x_0=None), auxiliary_updates + 1)

        def update_auxiliary(carry: tuple[Params, optax.OptState], inputs: tuple[Batch, Key]):
            phi, opt = carry
            part, k = inputs
            x_0 = generate(denoise, bridge, state.student, part, stream(k, "z"), noise_channels)
            data = part._replace(x_0=jax.lax.stop_gradient(x_0))

            def loss_fn(phi: Params) -> Array:
                return bridge_matching_loss(
                    denoise, bridge, phi, data, times(k, part), stream(k, "x_t"), auxiliary_weight
                ).mean()

            loss, grads = jax.value_and_grad(loss_fn)(phi)
            updates, opt = auxiliary_optimizer.update(grads, opt, phi)
            return (optax.apply_updates(phi, updates), opt), (loss, optax.tree.norm(grads))

        keys = jax.vmap(lambda i: step_key(key, "auxiliary", i))(jnp.arange(auxiliary_updates))
        first = jax.tree.map(lambda x: x[:-1], batches)
        # On CPU the gradient of a convolution inside a loop is some 50 times slower than outside it.
        (phi, phi_opt), (auxiliary_loss, auxiliary_norm) = jax.lax.scan(
            update_auxiliary,
            (state.auxiliary, state.auxiliary_optimizer),
            (first, keys),
            unroll=auxiliary_updates if jax.default_backend() == "cpu" else 1,
        )

        part = jax.tree.map(lambda x: x[-1], batches)
        k = stream(key, "student")

        def loss_fn(theta: Params) -> tuple[Array, tuple[Array, Array]]:
            x_0 = generate(denoise, bridge, theta, part, stream(k, "z"), noise_channels)
            good, bad = student_terms(
                denoise, bridge, teacher, phi, x_0, part, times(k, part), stream(k, "x_t"), student_weight
            )
            return (good - bad).mean(), (good.mean(), bad.mean())

        (loss, (teacher_term, auxiliary_term)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.student)
        updates, student_opt = student_optimizer.update(grads, state.student_optimizer, state.student)
        student = optax.apply_updates(state.student, updates)
        n = state.step + 1
        ema = ema_update(state.ema, student, n, ema_decay)
        info = Info(
            loss,
            teacher_term,
            auxiliary_term,
            auxiliary_loss.mean(),
            optax.tree.norm(grads),
            auxiliary_norm.mean(),
        )
        return State(n, student, phi, ema, student_opt, phi_opt), info

    def sample(params: Params, key: Key, batch: Batch) -> Array:
        return generate(denoise, bridge, params, batch, key, noise_channels)

    return Method(init, step, sample, lambda state: state.ema, batches=auxiliary_updates + 1)
