"""Inverse Bridge Matching Distillation (IBMD; Gushchin et al., ICML 2025, arXiv 2502.01362).

A generator G_theta of one step or a few whose own bridge-matching problem has the teacher as its solution, found from
corrupted images x_T alone:

    x_0 = G_theta(x_T, z),   z ~ N(0, I),   t ~ U[t_min, T],   x_t ~ q(x_t | x_0, x_T)                      (1)
    D(phi)   = E lambda(t) || x_0_phi(x_t, t [, x_T]) - x_0 ||^2                  the auxiliary network's loss   (2)
    L(theta) = E lambda(t) || x_0_*  (x_t, t [, x_T]) - x_0 ||^2 - min_phi D(phi)         Theorems 3.2 and 3.4   (3)

Each step makes L updates of phi on (2), theta fixed, then one of theta on (3), phi fixed (algorithm 1). The gradient
of (3) reaches theta through x_0 and through x_t; cutting the second path leaves the VSD / DMD direction instead.
The minus sign rewards Var[x_0 | x_t], which keeps the student from collapsing onto the mean.

A student of N steps (section 3.5) starts from states x_{t_n} of its own sampling, T = t_N > ... > t_1 > 0, made without
gradient. The authors' code has two ways, in the place of (1); x_0 = G_theta(x_{t_n}, t_n, z) in both:

    marginal (DDBM's)    n one for a batch,    x_{t_n} on the path of posterior draws of G_theta from x_T,
                         t ~ U[t_min, T],      x_t ~ q(x_t | x_0, x_T)                                       (4)
    posterior (I2SB's)   n one for an example, x_{t_n} ~ q(x_{t_n} | y, x_T), y restored by the EMA in N steps,
                         t ~ U[t_min, t_n],    x_t ~ q(x_t | x_0, x_{t_n})                                   (5)
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from ibmd_jax.bridges import Bridge
from ibmd_jax.bridges.times import uniform, uniform_grid
from ibmd_jax.core.arrays import composite, ema_update, expand
from ibmd_jax.core.streams import step_key, stream
from ibmd_jax.core.types import Array, Batch, Denoise, Key, Params
from ibmd_jax.methods.base import Method, WeightFn, one, split_batch
from ibmd_jax.methods.teacher import denoising_error
from ibmd_jax.samplers import few_step, one_step
from ibmd_jax.samplers.student import draw_z


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


def generate(
    denoise: Denoise,
    theta: Params,
    x_t: Array,
    t: Array,
    batch: Batch,
    key: Key,
    noise_channels: int = 0,
) -> Array:
    """x_0 = G_theta(x_t, t, z): [B, H, W, C], equal to x_T outside the mask. Equation (1) with x_t = x_T and t = T."""
    z = draw_z(key, batch.x_T, noise_channels)
    return composite(denoise(theta, x_t, t, batch.x_T, batch.cond, z), batch.x_T, batch.mask)


def path(
    denoise: Denoise, bridge: Bridge, theta: Params, batch: Batch, times: Array, key: Key, noise_channels: int = 0
) -> Array:
    """The states of equation (4) at `times` [N], which begin with T: [N, B, H, W, C], x_T first."""

    def step(x_s: Array, inputs: tuple[Array, Array, Key]) -> tuple[Array, Array]:
        s, t, k = inputs
        x_0 = generate(denoise, theta, x_s, s, batch, stream(k, "z"), noise_channels)
        mean, std = bridge.posterior(x_0, x_s, s, t)
        x_t = mean + std * jax.random.normal(k, x_s.shape, x_s.dtype)
        return x_t, x_t

    keys = jax.random.split(key, len(times) - 1)
    states = jax.lax.scan(step, batch.x_T, (times[:-1], times[1:], keys))[1]
    return jnp.concatenate([batch.x_T[None], states])


def student_terms(
    denoise: Denoise,
    bridge: Bridge,
    teacher: Params,
    phi: Params,
    x_0: Array,
    x_t: Array,
    t: Array,
    batch: Batch,
    weight: WeightFn = one,
) -> tuple[Array, Array]:
    """The two terms of equation (3) for every example, each [B], differentiable in x_0 and x_t alone.

    x_0 stands for G_theta(x_T, z); batch.x_0 is never read.
    """
    teacher, phi = jax.lax.stop_gradient((teacher, phi))
    good, bad = (denoising_error(denoise, bridge, p, x_t, t, x_0, batch, weight) for p in (teacher, phi))
    return good, bad


def ibmd(
    denoise: Denoise,
    bridge: Bridge,
    student_optimizer: optax.GradientTransformation,
    auxiliary_optimizer: optax.GradientTransformation,
    *,
    steps: int = 1,
    multistep: str = "marginal",
    auxiliary_updates: int = 5,
    student_weight: WeightFn = one,
    auxiliary_weight: WeightFn = one,
    noise_channels: int = 0,
    ema_decay: float = 0.99,
    t_min: float = 1e-3,
    time_sampler: Callable[..., Array] = uniform,
    dropout: bool = False,
) -> Method:
    """IBMD as a Method. `frozen` is the teacher's parameters; batches need no x_0; `sample` also takes its steps.

    Args:
        steps: N, the most steps that the student is trained for. multistep: "marginal" (4) or "posterior" (5).
        auxiliary_updates: L of algorithm 1. A step consumes L + 1 batches.
        student_weight, auxiliary_weight: lambda(t) of (3) and of (2); they may differ, since the minimiser of (2)
            does not depend on its lambda.
        noise_channels: channels of z; 0 where x_T itself is noisy.
        dropout: whether the auxiliary drops activations while it is updated; (3) is always without.
    Raises: ValueError for another multistep.
    """
    if multistep not in ("marginal", "posterior"):
        raise ValueError(f"multistep = {multistep!r}: it must be marginal or posterior")
    times = uniform_grid(steps, bridge.T)[:-1]

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

    def restore(theta: Params, batch: Batch, key: Key, steps: int) -> Array:
        def bound(x_t: Array, t: Array, x_T: Array, cond=None, z: Array | None = None) -> Array:
            return denoise(theta, x_t, t, x_T, cond, z)

        settings = {"noise_channels": noise_channels, "mask": batch.mask, "cond": batch.cond}
        if steps == 1:
            return one_step(bound, bridge, key, batch.x_T, **settings)
        return few_step(bound, bridge, key, batch.x_T, uniform_grid(steps, bridge.T), **settings)

    def first_state(theta: Params, ema: Params, batch: Batch, key: Key) -> tuple[Array, Array]:
        """x_{t_n} [B, H, W, C] and t_n [B] of (4) or (5)."""
        theta, examples = jax.lax.stop_gradient(theta), batch.x_T.shape[:1]
        if steps == 1:
            return batch.x_T, jnp.full(examples, bridge.T)
        if multistep == "marginal":
            n = jax.random.randint(stream(key, "n"), (), 0, steps)
            states = path(denoise, bridge, theta, batch, times, stream(key, "path"), noise_channels)
            return states[n], jnp.full(examples, times[n])
        n = jax.random.randint(stream(key, "n"), examples, 0, steps)
        y = restore(ema, batch, stream(key, "path"), steps)
        x = bridge.sample(stream(key, "first"), y, batch.x_T, times[n])
        return jnp.where(expand(n, batch.x_T) == 0, batch.x_T, x), times[n]

    def draw(theta: Params, ema: Params, batch: Batch, key: Key) -> tuple[Array, Array, Array]:
        """x_0, x_t and t of (1), (4) or (5), differentiable in theta through x_0 and x_t."""
        x_s, s = first_state(theta, ema, batch, key)
        x_0 = generate(denoise, theta, x_s, s, batch, stream(key, "z"), noise_channels)
        t = time_sampler(stream(key, "t"), batch.x_T.shape[0], t_min, bridge.T)
        if steps == 1 or multistep == "marginal":
            return x_0, bridge.sample(stream(key, "x_t"), x_0, batch.x_T, t), t
        t = t_min + (t - t_min) * (s - t_min) / (bridge.T - t_min)
        mean, std = bridge.posterior(x_0, x_s, s, t)
        return x_0, mean + std * jax.random.normal(stream(key, "x_t"), x_0.shape, x_0.dtype), t

    def step(state: State, teacher: Params, batch: Batch, key: Key) -> tuple[State, Info]:
        batches = split_batch(batch._replace(x_0=None), auxiliary_updates + 1)

        def update_auxiliary(carry: tuple[Params, optax.OptState], inputs: tuple[Batch, Key]):
            phi, opt = carry
            part, k = inputs
            x_0, x_t, t = jax.lax.stop_gradient(draw(state.student, state.ema, part, k))
            drop = stream(k, "dropout") if dropout else None

            def loss_fn(phi: Params) -> Array:
                return denoising_error(denoise, bridge, phi, x_t, t, x_0, part, auxiliary_weight, drop).mean()

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
            x_0, x_t, t = draw(theta, state.ema, part, k)
            good, bad = student_terms(denoise, bridge, teacher, phi, x_0, x_t, t, part, student_weight)
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

    def sample(params: Params, key: Key, batch: Batch, steps: int = steps) -> Array:
        return restore(params, batch, key, steps)

    return Method(init, step, sample, lambda state: state.ema, batches=auxiliary_updates + 1)
