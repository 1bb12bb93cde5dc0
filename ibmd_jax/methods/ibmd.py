"""Inverse Bridge Matching Distillation (IBMD; Gushchin et al., ICML 2025, arXiv 2502.01362).

A generator G_theta of one step or a few whose own bridge-matching problem has the teacher as its solution, found from
corrupted images x_T alone:

    x_0 = G_theta(x_T, z),   z ~ N(0, I),   t ~ U[t_min, T],   x_t ~ q(x_t | x_0, x_T)                      (1)
    D(phi)   = E lambda(t) || x_0_phi(x_t, t [, x_T]) - x_0 ||^2                  the auxiliary network's loss   (2)
    L(theta) = E lambda(t) || x_0_*  (x_t, t [, x_T]) - x_0 ||^2 - min_phi D(phi)         Theorems 3.2 and 3.4   (3)

|| ||^2 is the mean over an image's values, inside its mask. phi is the paper's bridge model. lambda of both terms of
(3) is student_weight, that of (2) auxiliary_weight: its minimiser does not depend on it.

Each step makes L updates of phi on (2), theta fixed, then one of theta on (3), phi fixed (algorithm 1). The gradient
of (3) reaches theta through x_0 and through x_t; cutting the second path leaves the VSD / DMD direction instead.
The minus sign rewards Var[x_0 | x_t], which keeps the student from collapsing onto the mean.

A student of N steps (section 3.5), at T = t_N > ... > t_1 > 0, starts from states x_{t_n} of its own sampling, made
without gradient. (The code counts from the start: times[0] = T = t_N, times[N - 1] = t_1.) The authors' code has two
ways, in the place of (1); x_0 = G_theta(x_{t_n}, t_n, z) in both:

    marginal (DDBM's)    n one for a batch,    x_{t_n} on the path of posterior draws of G_theta from x_T,
                         t ~ U[t_min, T],      x_t ~ q(x_t | x_0, x_T)                                       (4)
    posterior (I2SB's)   n one for an example, x_{t_n} ~ q(x_{t_n} | x_0', x_T), x_0' restored by the EMA in N steps,
                         t ~ U[t_min, t_n],    x_t ~ q(x_t | x_0, x_{t_n})                                   (5)

The auxiliary is not told n. So with (4) the L + 1 updates of a step share one n here, and the auxiliary follows it. The
authors draw n for each batch: their auxiliary fits the mixture of all n, and only that is matched; so it is with (5).

Where clean images exist they can take part (RealUID, arXiv 2509.22459, section 4): with 0 < alpha < 1, each term of
(3) becomes, y_0 being a clean image and y_t on its bridge,

    alpha E || x_0_hat(x_t, t) - beta/alpha x_0 ||^2 + (1-alpha) E || x_0_hat(y_t, t) - (1-beta)/(1-alpha) y_0 ||^2  (6)

and alpha = beta = 1 is (3). On a diffusion bridge, or a flow from noise, (3) is SiD with its alpha = 1/2, which is FGM.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ibmd_jax.bridges import Bridge
from ibmd_jax.bridges.times import uniform, uniform_grid
from ibmd_jax.core.arrays import composite, ema_update, expand, mean_inside, squared_error
from ibmd_jax.core.streams import first_key, normal, split, step_key, stream
from ibmd_jax.core.types import Array, Batch, Denoise, Key, Params
from ibmd_jax.methods.base import Method, Update, WeightFn, gathered, in_turn, mean_gradient, one, repeat, split_batch
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


T_BINS = 4  # equal parts of [0, T] that losses are also reported for


class Info(NamedTuple):
    """What one step reports: scalars, and [T_BINS] where named so (NaN for a part of [0, T] without an example).

    loss = teacher_term - auxiliary_term, unless `normalise` or real_data scale it; auxiliary_loss is the mean over the
    L updates. At the auxiliary's minimum the loss is not negative: where it stays so, the auxiliary, too noisy or too
    slow, is worse than the teacher on the student's own images (what came of that: methods/README.md). The identities
    are E[x_0_hat (x_0_hat - x_0)] of the teacher and of the auxiliary network: 0 for the posterior mean of the
    student's own x_0, so the second is near 0 while the auxiliary keeps up, the first when the student has converged.
    Neither holds with real_data, of whose terms the loss has no part: the networks then learn of clean images, too.
    """

    loss: Array
    teacher_term: Array
    auxiliary_term: Array
    auxiliary_loss: Array
    student_grad_norm: Array
    auxiliary_grad_norm: Array
    teacher_identity: Array
    auxiliary_identity: Array
    teacher_by_t: Array
    auxiliary_by_t: Array


class Draws(NamedTuple):
    """What is random in (1), (4) or (5), for every example: n, a uniform t [B], and a key [B] for the noises."""

    n: Array
    t: Array
    key: Key


class Terms(NamedTuple):
    """For every example, [B]: the two terms of (3), the two identities of Info, and the mean of |x_0_* - x_0|."""

    teacher: Array
    auxiliary: Array
    teacher_identity: Array
    auxiliary_identity: Array
    distance: Array


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


def state_on_path(
    denoise: Denoise,
    bridge: Bridge,
    theta: Params,
    batch: Batch,
    times: Array,
    n: Array,
    key: Key,
    noise_channels: int = 0,
    z_key: Key | None = None,
) -> Array:
    """x_{t_n} of equation (4), [B, H, W, C], at times[n]; times [N] begin with T, n is a scalar: 0 gives x_T.

    It takes n evaluations, not N - 1, and has no gradient. z_key: the key of one z for all of them; None: each draws
    its own.
    """
    keys = split(key, len(times) - 1)

    def step(i: Array, x_s: Array) -> Array:
        k = keys[i]
        x_0 = generate(denoise, theta, x_s, times[i], batch, stream(k, "z") if z_key is None else z_key, noise_channels)
        mean, std = bridge.posterior(x_0, x_s, times[i], times[i + 1])
        return mean + std * normal(k, x_s.shape, x_s.dtype)

    return jax.lax.fori_loop(0, n, step, batch.x_T)


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
    teacher_denoise: Denoise | None = None,
) -> Terms:
    """The two terms of equation (3) and what is reported beside them; differentiable in x_0 and x_t alone.

    x_0 stands for G_theta(x_T, z), or for beta/alpha of it in (6); batch.x_0 is never read.
    teacher_denoise: the teacher's network where it is another one than `denoise`.
    """
    teacher, phi = jax.lax.stop_gradient((teacher, phi))

    def mean(values: Array) -> Array:
        return mean_inside(values, batch.mask)

    def term(denoise: Denoise, params: Params, x_0: Array, x_t: Array) -> tuple[Array, tuple[Array, Array]]:
        x = denoise(params, x_t, t, batch.x_T, batch.cond)
        return weight(bridge, t) * squared_error(x, x_0, batch.mask), (mean(x * (x - x_0)), mean(jnp.abs(x - x_0)))

    good, bad = partial(term, teacher_denoise or denoise, teacher), partial(term, denoise, phi)
    (good, (good_identity, distance)), (bad, (bad_identity, _)) = in_turn((good, bad), x_0, x_t)
    return Terms(good, bad, good_identity, bad_identity, distance)


def by_t(values: Array, t: Array, T: float) -> Array:
    """Means of values [B] over the examples of equal parts of [0, T]: [T_BINS], NaN where there is none."""
    part = jnp.minimum((t / T * T_BINS).astype(jnp.int32), T_BINS - 1)
    inside = jax.nn.one_hot(part, T_BINS, dtype=values.dtype)
    return values @ inside / inside.sum(0)


def ibmd(
    denoise: Denoise,
    bridge: Bridge,
    student_optimizer: optax.GradientTransformation,
    auxiliary_optimizer: optax.GradientTransformation,
    *,
    steps: int = 1,
    multistep: str = "marginal",
    rollout: str = "student",
    same_z: bool = False,
    auxiliary_updates: int = 5,
    pretraining: int = 0,
    student_weight: WeightFn = one,
    auxiliary_weight: WeightFn = one,
    normalise: bool = False,
    noise_channels: int = 0,
    ema_decay: float = 0.99,
    t_min: float = 1e-3,
    time_sampler: Callable[..., Array] = uniform,
    dropout: bool = False,
    real_data: tuple[float, float] = (1.0, 1.0),
    from_noise: bool = False,
    teacher_denoise: Denoise | None = None,
    student_denoise: Denoise | None = None,
    student_label: int | None = None,
    accumulate: int = 1,
) -> Method:
    """IBMD as a Method. `frozen` is the teacher's parameters; `sample` also takes the number of steps.

    Args:
        steps: N, the most steps that the student is trained for. multistep: "marginal" (4) or "posterior" (5).
        rollout: "student" or "ema", whose parameters make x_{t_n}: (4) has the student's, (5) the average's; it
            does not follow from multistep.
        same_z: one z serves a whole roll-out of (4); otherwise each evaluation draws its own.
        auxiliary_updates: L of algorithm 1. A step consumes L + 1 batches.
        pretraining: number of first steps that update the auxiliary network alone.
        student_weight, auxiliary_weight: lambda(t) of (3) and of (2); they may differ, since the minimiser of (2)
            does not depend on its lambda.
        normalise: divides each example's (3) by its mean |x_0_* - x_0| (SiD, arXiv 2404.04057).
        noise_channels: channels of z; 0 where x_T itself is noisy and the teacher does not see it. They are further
            input channels; whether they stand beside those of x_t or of x_T makes no difference.
        dropout: whether the auxiliary drops activations while it is updated; (3) is always without.
        real_data: (alpha, beta) of (6); (1, 1) uses no clean images, and batches need no x_0.
        from_noise: x_T is N(0, I) and has nothing to do with x_0, as in flow matching: that in x_t is then drawn anew.
            A diffusion bridge has a = 0 and needs no such choice.
        teacher_denoise: the teacher's network where it is another one: see methods/teachers.py for several.
        student_denoise: the student's network where it is called in another way: networks.generator.told_earlier.
        student_label: a label that the student is given in the place of batch.cond, which teacher and auxiliary see: a
            student blind to the task.
        accumulate: parts of a batch whose gradients are averaged one after the other, to save memory.
    Raises: ValueError for another multistep or rollout, for "posterior" from noise, with same_z, or with a t_min that
        leaves its last step no time, and for alpha and beta that (6) does not allow; `sample` for more than N steps.
    """
    for name, value, known in (
        ("multistep", multistep, ("marginal", "posterior")),
        ("rollout", rollout, ("student", "ema")),
    ):
        if value not in known:
            raise ValueError(f"{name} = {value!r}: it must be {known[0]} or {known[1]}")
    if same_z and multistep == "posterior":
        raise ValueError("same_z is for multistep = 'marginal': the states of 'posterior' come from another roll-out")
    try:
        alpha, beta = (float(value) for value in real_data)
    except (TypeError, ValueError) as error:
        raise ValueError(f"real_data = {real_data}: it must be two numbers, alpha and beta") from error
    if not ((0 < alpha < 1 and 0 < beta <= 1) or alpha == beta == 1):
        raise ValueError(f"real_data = {alpha, beta}: alpha is between 0 and 1 and beta at most 1, or both are 1")
    if from_noise and steps > 1 and multistep == "posterior":
        raise ValueError("multistep = 'posterior' takes x_T for a part of x_t, which noise is not: take 'marginal'")
    if multistep == "posterior" and t_min >= bridge.T / steps:
        raise ValueError(f"t_min = {t_min}: the last of {steps} steps starts at {bridge.T / steps:g}, lower t_min")
    times, student_denoise = uniform_grid(steps, bridge.T)[:-1], student_denoise or denoise

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

    def for_student(batch: Batch) -> Batch:
        if student_label is None:
            return batch
        return batch._replace(cond=jnp.full(batch.x_T.shape[:1], student_label, jnp.int32))

    def restore(theta: Params, batch: Batch, key: Key, n: int) -> Array:
        """In n of the steps that the student was trained for, the first among them."""
        if not 1 <= n <= steps:
            raise ValueError(f"this student has up to {steps} steps, not {n}")

        def bound(x_t: Array, t: Array, x_T: Array, cond=None, z: Array | None = None) -> Array:
            return student_denoise(theta, x_t, t, x_T, cond, z)

        settings = {"noise_channels": noise_channels, "mask": batch.mask, "cond": for_student(batch).cond}
        if n == 1:
            return one_step(bound, bridge, key, batch.x_T, **settings)
        grid = jnp.append(times[np.arange(n) * steps // n], jnp.float32(0))
        return few_step(bound, bridge, key, batch.x_T, grid, same_z=same_z, **settings)

    def end(batch: Batch, key: Key) -> Array:
        """Where the bridges to x_0 end."""
        return normal(stream(key, "x_T"), batch.x_T.shape) if from_noise else batch.x_T

    def draws(batch: Batch, key: Key, n: Array | None) -> Draws:
        examples = batch.x_T.shape[0]
        if multistep == "posterior" or n is None:
            n = jax.random.randint(stream(key, "n"), (examples,) if multistep == "posterior" else (), 0, steps)
        t = time_sampler(stream(key, "t"), examples, t_min, bridge.T)
        return Draws(jnp.broadcast_to(n, (examples,)), t, jax.random.split(stream(key, "examples"), examples))

    def first_state(theta: Params, batch: Batch, n: Array, key: Key) -> Array:
        """x_{t_n} [B, H, W, C] of (4) or (5), made by theta."""
        if steps == 1:
            return batch.x_T
        if multistep == "marginal":
            z_key = stream(key, "z") if same_z else None
            given, k = for_student(batch), stream(key, "path")
            return state_on_path(student_denoise, bridge, theta, given, times, n[0], k, noise_channels, z_key)
        y = restore(theta, batch, stream(key, "path"), steps)
        x = bridge.sample(stream(key, "first"), y, end(batch, key), times[n])
        return jnp.where(expand(n, batch.x_T) == 0, batch.x_T, x)

    def draw(theta: Params, ema: Params, batch: Batch, drawn: Draws) -> tuple[Array, Array, Array]:
        """x_0, x_t and t of (1), (4) or (5), differentiable in theta through x_0 and x_t."""
        n, t, key = drawn
        x_s, s = first_state(jax.lax.stop_gradient(theta if rollout == "student" else ema), batch, n, key), times[n]
        x_0 = generate(student_denoise, theta, x_s, s, for_student(batch), stream(key, "z"), noise_channels)
        if steps == 1 or multistep == "marginal":
            return x_0, bridge.sample(stream(key, "x_t"), x_0, end(batch, key), t), t
        t = t_min + (t - t_min) * (s - t_min) / (bridge.T - t_min)
        mean, std = bridge.posterior(x_0, x_s, s, t)
        return x_0, mean + std * normal(stream(key, "x_t"), x_0.shape, x_0.dtype), t

    def matching_loss(phi: Params, x_0: Array, x_t: Array, t: Array, batch: Batch, key: Key) -> Array:
        """(2), or both parts of (6)."""
        drop = stream(first_key(key), "dropout") if dropout else None

        def error(x_t: Array, target: Array) -> Array:
            return denoising_error(denoise, bridge, phi, x_t, t, target, batch, auxiliary_weight, drop).mean()

        if alpha == 1:
            return error(x_t, x_0)
        x_t_real = bridge.sample(stream(key, "real"), batch.x_0, end(batch, key), t)
        real = error(x_t_real, (1 - beta) / (1 - alpha) * batch.x_0)
        return alpha * error(x_t, beta / alpha * x_0) + (1 - alpha) * real

    def update_auxiliary(
        state: State, teacher: Params, batch: Batch, key: Key, n: Array | None = None
    ) -> tuple[State, tuple[Array, Array]]:
        """One update on (2): the state, the loss and the gradient's norm. n of (4), drawn where it is not given."""
        del teacher
        student, ema = gathered((state.student, state.ema))

        def loss_fn(phi: Params, inputs: tuple[Batch, Draws]) -> tuple[Array, None]:
            part, drawn = inputs
            x_0, x_t, t = jax.lax.stop_gradient(draw(student, ema, part, drawn))
            return matching_loss(phi, x_0, x_t, t, part, drawn.key), None

        (loss, _), grads = mean_gradient(loss_fn, state.auxiliary, (batch, draws(batch, key, n)), accumulate)
        updates, opt = auxiliary_optimizer.update(grads, state.auxiliary_optimizer, state.auxiliary)
        phi = optax.apply_updates(state.auxiliary, updates)
        return state._replace(auxiliary=phi, auxiliary_optimizer=opt), (loss, optax.tree.norm(grads))

    def update_student(
        state: State, teacher: Params, batch: Batch, key: Key, n: Array | None = None
    ) -> tuple[State, Info]:
        """One update on (3); the auxiliary's entries of Info are NaN. n as in update_auxiliary."""
        auxiliary, teacher, ema = gathered((state.auxiliary, teacher, state.ema))

        def loss_fn(theta: Params, inputs: tuple[Batch, Draws]) -> tuple[Array, tuple[Terms, Array]]:
            part, drawn = inputs
            x_0, x_t, t = draw(theta, ema, part, drawn)
            target = x_0 if alpha == 1 else beta / alpha * x_0
            terms = student_terms(
                denoise, bridge, teacher, auxiliary, target, x_t, t, part, student_weight, teacher_denoise
            )
            loss = alpha * (terms.teacher - terms.auxiliary)  # the parts of y_0 in (6) do not depend on theta
            if normalise:
                loss = loss / (jax.lax.stop_gradient(terms.distance) + 1e-8)
            return loss.mean(), (terms, t)

        (loss, (terms, t)), grads = mean_gradient(loss_fn, state.student, (batch, draws(batch, key, n)), accumulate)
        updates, opt = student_optimizer.update(grads, state.student_optimizer, state.student)
        student, done = optax.apply_updates(state.student, updates), state.step + 1
        new = student, ema_update(state.ema, student, done - pretraining, ema_decay), opt
        if pretraining:
            old = state.student, state.ema, state.student_optimizer
            new = jax.tree.map(lambda x, y: jnp.where(done > pretraining, x, y), new, old)
        means, unknown = Terms(*(x.mean() for x in terms)), jnp.float32(jnp.nan)
        info = Info(
            loss,
            means.teacher,
            means.auxiliary,
            unknown,
            optax.tree.norm(grads),
            unknown,
            means.teacher_identity,
            means.auxiliary_identity,
            by_t(terms.teacher, t, bridge.T),
            by_t(terms.auxiliary, t, bridge.T),
        )
        student, average, opt = new
        return state._replace(step=done, student=student, ema=average, student_optimizer=opt), info

    def step(state: State, teacher: Params, batch: Batch, key: Key) -> tuple[State, Info]:
        if alpha == 1:
            batch = batch._replace(x_0=None)
        elif batch.x_0 is None:
            raise ValueError("real_data needs clean images: the batch has no x_0")
        batches = split_batch(batch, auxiliary_updates + 1)
        first, last = jax.tree.map(lambda x: x[:-1], batches), jax.tree.map(lambda x: x[-1], batches)
        keys = jax.vmap(lambda i: step_key(key, "auxiliary", i))(jnp.arange(auxiliary_updates))
        n = jax.random.randint(stream(key, "n"), (), 0, steps)
        state, (losses, norms) = repeat(
            lambda s, inputs: update_auxiliary(s, teacher, *inputs, n), state, (first, keys)
        )
        state, info = update_student(state, teacher, last, stream(key, "student"), n)
        return state, info._replace(auxiliary_loss=losses.mean(), auxiliary_grad_norm=norms.mean())

    def sample(params: Params, key: Key, batch: Batch, steps: int = steps) -> Array:
        return restore(params, batch, key, steps)

    updates = {"auxiliary": Update(auxiliary_updates, update_auxiliary), "student": Update(1, update_student)}
    return Method(init, step, sample, lambda state: state.ema, updates, batches=auxiliary_updates + 1)
