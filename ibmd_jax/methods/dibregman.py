"""One-step distillation by Bregman density-ratio matching (Di-Bregman; Zhu et al., arXiv 2510.16983).

A generator x_0 = G_theta(x_T, z) whose noised images x_t ~ q(x_t | x_0, x_T) are to have the density p_t of the
teacher's. With r = q_t / p_t and a convex h, the objective and its gradient are

    min_theta E_{p_t} D_h(r || 1)                                                                            (1)
    grad = -E w(t) h''(r) r (grad log p_t(x_t) - grad log q_t(x_t)) dx_t/dtheta                              (2)
         =  E omega(t) h''(r) r (x_0_phi - x_0_*) dG/dtheta,          omega = w (dx_t/dx_0)^2 / variance     (3)

x_0_* is the teacher's estimate from x_t and x_0_phi that of an auxiliary network, trained by bridge matching on the
student's x_0: a score is linear in either, with the same coefficients. h(r) = r log r, of weight h'' r = 1, is the
reverse KL divergence: DMD, VSD, Diff-Instruct. The ratio is a classifier's of noised images, D = p / (p + q):

    E softplus(-d(y_t)) + E softplus(d(x_t)) -> min,     r = exp(-d),     y_t ~ q(y_t | y_0, x_T)            (4)

y_0 being clean images or the teacher's samples. (3) holds where x_T is noise alone, and on bridges with noise between
images if all networks see x_T: then every density is conditional on it. (The score of a marginal x_t needs
E[x_T | x_t], too, which the estimate of x_0 of a network that does not see x_T says nothing of.)
The paper's text was not at hand: (1), (2) and (4) are its abstract's and slides', the table of h is derived (the tests
hold it against autodiff), the stabilisers are those of f-distill (arXiv 2502.15681).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ibmd_jax.bridges import Bridge
from ibmd_jax.bridges.times import uniform
from ibmd_jax.core.arrays import ema_update, expand, mean_inside
from ibmd_jax.core.streams import normal, step_key, stream
from ibmd_jax.core.types import Array, Batch, Denoise, Key, Params
from ibmd_jax.methods.base import Method, Update, WeightFn, gathered, mean_gradient, one, repeat, split_batch
from ibmd_jax.methods.ibmd import generate
from ibmd_jax.methods.teacher import denoising_error
from ibmd_jax.samplers import one_step


class Divergence(NamedTuple):
    """h of equation (1), up to a linear function, and its weight h''(r) r; both of r > 0 of any shape."""

    h: Callable[[Array], Array]
    weight: Callable[[Array], Array]


def power(exponent: float = 0.5) -> Divergence:
    """h'' = r^(exponent - 1): 0 is the reverse KL, 1 Pearson's, -1 the forward KL divergence."""
    if exponent in (0.0, -1.0):
        return DIVERGENCES["reverse_kl" if exponent == 0 else "forward_kl"]
    return Divergence(lambda r: r ** (exponent + 1) / (exponent * (exponent + 1)), lambda r: r**exponent)


DIVERGENCES: dict[str, Divergence] = {
    "reverse_kl": Divergence(lambda r: r * jnp.log(r), jnp.ones_like),
    "forward_kl": Divergence(lambda r: -jnp.log(r), lambda r: 1 / r),
    "pearson": Divergence(lambda r: jnp.square(r - 1) / 2, lambda r: r),
    "jensen_shannon": Divergence(lambda r: r * jnp.log(r) - (1 + r) * jnp.log1p(r), lambda r: 1 / (1 + r)),
    "softened_reverse_kl": Divergence(lambda r: (1 + r) * jnp.log1p(r), lambda r: r / (1 + r)),
    "hellinger": Divergence(lambda r: -4 * jnp.sqrt(r), jax.lax.rsqrt),
    "jeffreys": Divergence(lambda r: (r - 1) * jnp.log(r), lambda r: 1 + 1 / r),
}


class Classifier(NamedTuple):
    """Tells noised images of the teacher from the student's.

    init(phi) -> parameters, given the auxiliary network's first ones.
    logit(parameters, phi, x_t, t, batch) -> d [B] of equation (4).
    """

    init: Callable[[Params], Params]
    logit: Callable[..., Array]


def on_features(denoise: Denoise, head_init: Callable[[], Params], head: Callable[..., Array], own: bool) -> Classifier:
    """A head on the features of a denoiser: the auxiliary network's, or those of a network of its own.

    Args:
        head: (parameters, features [B, h, w, C]) -> [B]; head_init() makes its parameters.
        own: the classifier trains a copy of the network; otherwise the auxiliary's features are taken as they are.
    """

    def init(phi: Params) -> Params:
        return {"head": head_init(), **({"network": jax.tree.map(jnp.copy, phi)} if own else {})}

    def logit(params: Params, phi: Params, x_t: Array, t: Array, batch: Batch) -> Array:
        network = params["network"] if own else jax.lax.stop_gradient(phi)
        return head(params["head"], denoise(network, x_t, t, batch.x_T, batch.cond, features=True)[1])

    return Classifier(init, logit)


class State(NamedTuple):
    """step counts finished steps; `ema` averages the student, and is what is deployed.

    auxiliary and classifier have one optimiser. ratio_mean [RATIO_BINS] and weight_mean are moving averages of 1 / r,
    for equal parts of [0, T], and of h''(r) r.
    """

    step: Array
    student: Params
    auxiliary: Params
    classifier: Params
    ema: Params
    student_optimizer: optax.OptState
    auxiliary_optimizer: optax.OptState
    ratio_mean: Array
    weight_mean: Array


RATIO_BINS = 10
AVERAGING = 0.95  # of ratio_mean and weight_mean: some twenty steps


class Info(NamedTuple):
    """Scalars of one step. loss is E |x_0_phi - x_0_*|, inside the mask: 0 where (3) vanishes.

    classifier_loss is (4), 2 log 2 = 1.386 where the classifier sees no difference. ratio and weight are means of r,
    with its stabilisers, and of h''(r) r.
    """

    loss: Array
    auxiliary_loss: Array
    classifier_loss: Array
    ratio: Array
    weight: Array
    student_grad_norm: Array
    auxiliary_grad_norm: Array


def dibregman(
    denoise: Denoise,
    bridge: Bridge,
    student_optimizer: optax.GradientTransformation,
    auxiliary_optimizer: optax.GradientTransformation,
    classifier: Classifier,
    *,
    divergence: Divergence = DIVERGENCES["reverse_kl"],
    reference: Callable[[Params, Key, Batch], Array] | None = None,
    auxiliary_updates: int = 5,
    student_weight: WeightFn = one,
    auxiliary_weight: WeightFn = one,
    normalise: bool = True,
    logit_clip: float = 10.0,
    ratio_clip: tuple[float, float] = (0.05, 10.0),
    ratio_mean: bool = True,
    weight_mean: bool = True,
    adversarial: float = 0.0,
    noise_channels: int = 0,
    ema_decay: float = 0.99,
    t_min: float = 1e-3,
    time_sampler: Callable[..., Array] = uniform,
    from_noise: bool = False,
    student_denoise: Denoise | None = None,
    accumulate: int = 1,
) -> Method:
    """Di-Bregman as a Method; `frozen` is the teacher's parameters. The denoiser's features are asked for.

    Args:
        divergence: h, one of DIVERGENCES or `power`.
        reference: (teacher, keys [B], batch) -> y_0 of (4), such as the teacher's samples; None: batch.x_0.
        auxiliary_updates: of auxiliary network and classifier, before one of the student; each has a batch.
        student_weight: omega(t) of (3). auxiliary_weight: lambda(t) of the auxiliary network's loss.
        normalise: divides each example's (3) by its mean |x_0 - x_0_*|, as DMD does.
        logit_clip: bound of |d|, wider than the default ones of r; ratio_clip: bounds of r; 0 and (0, inf) leave them.
        ratio_mean: multiplies r by the moving average of 1 / r in its tenth of [0, T]. The true one is 1, as 1 / r is
            p / q and x_t is drawn from q. (That of r is more than 1: to divide by it would be wrong.)
        weight_mean: divides h''(r) r by its own moving average.
        adversarial: weight of softplus(-d(x_t)) in the student's loss, a further, plainly adversarial refinement.
        noise_channels: channels of z; 0 where x_T is noise alone. With an image as x_T every density is given x_T, so
            the student needs z even if that image is noisy.
        from_noise: x_T is N(0, I) and has nothing to do with x_0, as in flow matching: that in x_t is then drawn anew.
        student_denoise: the student's network where it is called in another way: networks.generator.told_earlier.
        accumulate: parts of a batch whose gradients are averaged one after the other, to save memory.
    No network drops activations here. Raises: ValueError for bounds that leave no r.
    """
    if len(ratio_clip) != 2 or not 0 <= ratio_clip[0] < ratio_clip[1] or logit_clip < 0:
        raise ValueError(f"ratio_clip = {ratio_clip}, logit_clip = {logit_clip}: the bounds are 0 <= low < high")
    student_denoise = student_denoise or denoise

    def init(start: tuple[Params, Params]) -> State:
        """start: the student's first parameters (see networks.generator) and the auxiliary's (the teacher's)."""
        student, phi = start
        judge = classifier.init(phi)
        return State(
            jnp.zeros((), jnp.int32),
            student,
            phi,
            judge,
            jax.tree.map(jnp.copy, student),
            student_optimizer.init(student),
            auxiliary_optimizer.init((phi, judge)),
            jnp.ones(RATIO_BINS),
            jnp.ones(()),
        )

    def draws(batch: Batch, key: Key) -> tuple[Array, Key]:
        examples = batch.x_T.shape[0]
        t = time_sampler(stream(key, "t"), examples, t_min, bridge.T)
        return t, jax.random.split(stream(key, "examples"), examples)

    def noised(x_0: Array, t: Array, batch: Batch, key: Key) -> Array:
        end = normal(stream(key, "x_T"), batch.x_T.shape) if from_noise else batch.x_T
        return bridge.sample(stream(key, "x_t"), x_0, end, t)

    def student_image(theta: Params, batch: Batch, key: Key) -> Array:
        return generate(
            student_denoise,
            theta,
            batch.x_T,
            jnp.full(batch.x_T.shape[:1], bridge.T),
            batch,
            stream(key, "z"),
            noise_channels,
        )

    def update_auxiliary(state: State, teacher: Params, batch: Batch, key: Key) -> tuple[State, tuple[Array, ...]]:
        """One update of the auxiliary network and of the classifier on (4)."""
        student, teacher = gathered((state.student, teacher))
        if batch.x_0 is None and reference is None:
            raise ValueError("dibregman needs clean images, or a reference: the batch has no x_0")

        def loss_fn(trained: tuple[Params, Params], inputs: tuple) -> tuple[Array, tuple[Array, Array]]:
            (phi, judge), (part, (t, keys)) = trained, inputs
            x_0 = student_image(jax.lax.stop_gradient(student), part, keys)
            x_t = noised(x_0, t, part, keys)
            y_0 = part.x_0 if reference is None else reference(teacher, keys, part)
            y_t = noised(y_0, t, part, stream(keys, "clean"))
            matching = denoising_error(denoise, bridge, phi, x_t, t, x_0, part, auxiliary_weight)
            told = jax.nn.softplus(-classifier.logit(judge, phi, y_t, t, part))
            told = told + jax.nn.softplus(classifier.logit(judge, phi, x_t, t, part))
            return (matching + told).mean(), (matching, told)

        trained = state.auxiliary, state.classifier
        (_, terms), grads = mean_gradient(loss_fn, trained, (batch, draws(batch, key)), accumulate)
        updates, opt = auxiliary_optimizer.update(grads, state.auxiliary_optimizer, trained)
        phi, judge = optax.apply_updates(trained, updates)
        new = state._replace(auxiliary=phi, classifier=judge, auxiliary_optimizer=opt)
        return new, (*(x.mean() for x in terms), optax.tree.norm(grads))

    def ratio(state: State, logit: Array, t: Array) -> tuple[Array, Array]:
        """r [B] of (4), clipped; and such that 1 / r is 1 on average."""
        r = jnp.exp(-(jnp.clip(logit, -logit_clip, logit_clip) if logit_clip else logit))
        clipped = jnp.clip(r, *ratio_clip)
        return clipped, clipped * state.ratio_mean[tenth(t)] if ratio_mean else clipped

    def tenth(t: Array) -> Array:
        return jnp.minimum((t / bridge.T * RATIO_BINS).astype(jnp.int32), RATIO_BINS - 1)

    def update_student(state: State, teacher: Params, batch: Batch, key: Key) -> tuple[State, Info]:
        """One update on (3); the auxiliary's entries of Info are NaN."""
        teacher, auxiliary, judge = gathered((teacher, state.auxiliary, state.classifier))

        def loss_fn(theta: Params, inputs: tuple) -> tuple[Array, tuple[Array, ...]]:
            part, (t, keys) = inputs
            x_0 = student_image(theta, part, keys)
            x_t = noised(x_0, t, part, keys)
            still = jax.lax.stop_gradient(x_t)
            good, bad = (denoise(p, still, t, part.x_T, part.cond) for p in (teacher, auxiliary))
            logit = classifier.logit(judge, auxiliary, x_t if adversarial else still, t, part)
            clipped, r = ratio(state, jax.lax.stop_gradient(logit), t)
            weight = divergence.weight(r)
            omega = student_weight(bridge, t) * (weight / state.weight_mean if weight_mean else weight)
            if normalise:
                omega = omega / (mean_inside(jnp.abs(x_0 - good), part.mask) + 1e-8)
            direction = jax.lax.stop_gradient(expand(omega, x_0) * (bad - good))
            loss = mean_inside(direction * x_0, part.mask)
            if adversarial:
                loss = loss + adversarial * jax.nn.softplus(-logit)
            return loss.mean(), (mean_inside(jnp.abs(bad - good), part.mask), clipped, weight, r, t)

        inputs = batch._replace(x_0=None), draws(batch, key)
        (_, (distance, clipped, weight, r, t)), grads = mean_gradient(loss_fn, state.student, inputs, accumulate)
        updates, opt = student_optimizer.update(grads, state.student_optimizer, state.student)
        student, n = optax.apply_updates(state.student, updates), state.step + 1
        inside = jax.nn.one_hot(tenth(t), RATIO_BINS)
        count = inside.sum(0)
        of_bins = jnp.where(count > 0, (1 / clipped) @ inside / jnp.maximum(count, 1), state.ratio_mean)
        averages = ema_update((state.ratio_mean, state.weight_mean), (of_bins, weight.mean()), n, AVERAGING)
        unknown = jnp.float32(jnp.nan)
        info = Info(distance.mean(), unknown, unknown, r.mean(), weight.mean(), optax.tree.norm(grads), unknown)
        return state._replace(
            step=n,
            student=student,
            ema=ema_update(state.ema, student, n, ema_decay),
            student_optimizer=opt,
            ratio_mean=averages[0],
            weight_mean=averages[1],
        ), info

    def step(state: State, teacher: Params, batch: Batch, key: Key) -> tuple[State, Info]:
        batches = split_batch(batch, auxiliary_updates + 1)
        first, last = jax.tree.map(lambda x: x[:-1], batches), jax.tree.map(lambda x: x[-1], batches)
        keys = jax.vmap(lambda i: step_key(key, "auxiliary", i))(jnp.arange(auxiliary_updates))
        state, found = repeat(lambda s, inputs: update_auxiliary(s, teacher, *inputs), state, (first, keys))
        state, info = update_student(state, teacher, last, stream(key, "student"))
        matching, told, norm = (x.mean() for x in found)
        return state, info._replace(auxiliary_loss=matching, classifier_loss=told, auxiliary_grad_norm=norm)

    def sample(params: Params, key: Key, batch: Batch, steps: int = 1) -> Array:
        if steps != 1:
            raise ValueError(f"this student has one step, not {steps}")

        def bound(x_t: Array, t: Array, x_T: Array, cond: Any = None, z: Array | None = None) -> Array:
            return student_denoise(params, x_t, t, x_T, cond, z)

        settings = {"noise_channels": noise_channels, "mask": batch.mask, "cond": batch.cond}
        return one_step(bound, bridge, key, batch.x_T, **settings)

    updates = {"auxiliary": Update(auxiliary_updates, update_auxiliary), "student": Update(1, update_student)}
    return Method(init, step, sample, lambda state: state.ema, updates, batches=auxiliary_updates + 1)
