"""The contract of a method, and what all methods share."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ibmd_jax.bridges import Bridge
from ibmd_jax.core.arrays import ema_update
from ibmd_jax.core.types import Array, Batch, Key, Params

WeightFn = Callable[[Bridge, Array], Array]


class Update(NamedTuple):
    """A part of a step that may be compiled alone: apply(state, frozen, batch, key) -> (state, what it reports).

    count: how often a step does it, with a batch each.
    """

    count: int
    apply: Callable[..., tuple[Any, Any]]


class Method(NamedTuple):
    """A training method as pure functions, to be jitted by the caller with the state donated.

    init(start) -> State: from the first parameters. Jit it: its leaves must not share buffers.
    step(state, frozen, batch, key) -> (State, Info): frozen is the teacher's parameters, or None; batch holds
        `batches` times the batch size, see `split_batch`. Info is a NamedTuple of scalars, `loss` among them.
    sample(params, key, batch) -> x_0 [B, H, W, C]: restores a batch with exported parameters.
    export(state) -> params: the parameters to deploy (the moving average).
    updates: what a step does, by name and in its order.
    """

    init: Callable[..., Any]
    step: Callable[..., tuple[Any, Any]]
    sample: Callable[..., Array]
    export: Callable[..., Any]
    updates: dict[str, Update]
    batches: int = 1


def split_batch(batch: Batch, parts: int) -> Batch:
    """[parts * B, ...] -> [parts, B, ...], so that a batch axis sharded over devices stays where it is."""
    return jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0), batch)


def gathered(params: Params) -> Params:
    """Parameters whole on every device of jax.set_mesh's mesh, until the update that reads them has ended.

    Outside of the loop over microbatches, split parameters then travel once for all of them.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return params
    return jax.lax.with_sharding_constraint(params, jax.sharding.PartitionSpec())


def mean_gradient(
    loss: Callable[..., tuple[Array, Any]], params: Params, inputs: Any, parts: int = 1
) -> tuple[tuple[Array, Any], Params]:
    """jax.value_and_grad of a mean over examples, in microbatches that one after the other use the same memory.

    On accelerators, that is: XLA for CPUs gives the parts memory of their own.

    Args:
        loss: (params, inputs) -> (mean over the examples of `inputs`, further results, each leaf with one entry for an
            example).
        inputs: leaves [B, ...]; parts divides B.
    Returns: ((loss, further results [B]), gradient), averages over the parts: the same numbers for any parts up to
        rounding, if an example's terms depend on it alone. The further results are not in the order of the inputs.
    """
    gradient, near = jax.value_and_grad(loss, has_aux=True), gathered(params)
    if parts == 1:
        return gradient(near, inputs)

    def add(total: Any, part: Any) -> tuple[Any, Any]:
        (value, further), grads = gradient(near, part)
        return jax.tree.map(jnp.add, total, (value, grads)), further

    zero = jnp.zeros(()), jax.tree.map(jnp.zeros_like, params)
    total, further = repeat(add, zero, split_batch(inputs, parts))
    value, grads = jax.tree.map(lambda x: x / parts, total)
    return (value, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), further)), grads


def in_turn(terms: Sequence[Callable[..., tuple[Array, Any]]], *inputs: Array) -> list[tuple[Array, Any]]:
    """What the terms of one loss return for the inputs, each term's gradient computed before the next term begins.

    Called one by one, all terms have their networks' activations in memory until the gradient is asked for.

    Args:
        terms: each (inputs) -> (values [B], further results): an example's value depends on that example's inputs.
        inputs: [B, ...].
    Returns: the same, differentiable once: the values in the inputs, the further results in nothing.
    """
    given, found = jax.lax.stop_gradient(inputs), []
    for term in terms:

        def total(*x: Array, term: Callable[..., tuple[Array, Any]] = term) -> tuple[Array, tuple[Array, Any]]:
            values, further = term(*x)
            return values.sum(), (values, further)

        grads, result = jax.grad(total, argnums=tuple(range(len(inputs))), has_aux=True)(*given)
        given, grads, (values, further) = jax.lax.optimization_barrier((given, grads, result))
        for x, x_now, grad in zip(inputs, given, grads, strict=True):
            values = values + (grad * (x - x_now)).sum(tuple(range(1, x.ndim)))
        found.append((values, further))
    return found


class State(NamedTuple):
    """Of a method that trains one network. step counts finished updates; the others are shaped like the parameters."""

    step: Array
    params: Params
    ema: Params
    optimizer: optax.OptState


def one_network(
    draw: Callable[[Batch, Key], Any],
    loss: Callable[..., tuple[Array, tuple[Array, ...]]],
    info: Callable[..., Any],
    optimizer: optax.GradientTransformation,
    ema_decay: float,
    accumulate: int = 1,
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """`init` and `step` of a method that trains one network on the mean of a loss.

    Args:
        draw: (batch, key) -> all that is random, leaves [B].
        loss: (params, frozen, batch, drawn) -> (loss [B], terms to report [B] each).
        info: makes the Info of (loss, norm of its gradient, the terms' means).
        accumulate: parts of a batch whose gradients are averaged one after the other, to save memory.
    """

    def init(start: Params) -> State:
        copy = jax.tree.map(jnp.copy, start)
        return State(jnp.zeros((), jnp.int32), start, copy, optimizer.init(start))

    def step(state: State, frozen: Params | None, batch: Batch, key: Key) -> tuple[State, Any]:
        frozen = jax.lax.stop_gradient(gathered(frozen))

        def mean(params: Params, inputs: tuple[Batch, Any]) -> tuple[Array, tuple[Array, ...]]:
            values, terms = loss(params, frozen, *inputs)
            return values.mean(), terms

        (value, terms), grads = mean_gradient(mean, state.params, (batch, draw(batch, key)), accumulate)
        updates, opt = optimizer.update(grads, state.optimizer, state.params)
        params, n = optax.apply_updates(state.params, updates), state.step + 1
        new = State(n, params, ema_update(state.ema, params, n, ema_decay), opt)
        return new, info(value, optax.tree.norm(grads), *(x.mean() for x in terms))

    return init, step


def repeat(body: Callable[..., tuple[Any, Any]], carry: Any, inputs: Any) -> tuple[Any, Any]:
    """jax.lax.scan over few but long steps; written out on CPU.

    There the gradient of a convolution inside a loop is some 50 times slower than outside it.
    """

    def unrolled(carry: Any, inputs: Any) -> tuple[Any, Any]:
        if len(jax.tree.leaves(inputs)[0]) > 1:
            return jax.lax.scan(body, carry, inputs, unroll=True)
        carry, out = body(carry, jax.tree.map(lambda x: x[0], inputs))  # of one step, scan makes a loop all the same
        return carry, jax.tree.map(lambda x: jnp.asarray(x)[None], out)

    def loop(carry: Any, inputs: Any) -> tuple[Any, Any]:
        return jax.lax.scan(body, carry, inputs)

    return jax.lax.platform_dependent(carry, inputs, cpu=unrolled, default=loop)


def one(bridge: Bridge, t: Array) -> Array:
    """lambda = 1: plain squared error of x_0."""
    return jnp.ones_like(t)


def g2(bridge: Bridge, t: Array) -> Array:
    """lambda = g^2 alpha^2 / sigma^4, with which IBMD's loss is a KL divergence of path measures (theorem 3.1).

    The loss is twice that of the paths from t_min on, over the number of values and over T - t_min: it is a mean.
    As an error of drifts v = (alpha x_0 - x_t) / sigma^2 it is g^2 ||v_theta - v*||^2. Large near t = 0.
    """
    t = jnp.minimum(t, bridge.T * (1 - 1e-5))  # where alpha_T = 0, g^2 is infinite there, and lambda is not
    return bridge.f_and_g2(t)[1] * jnp.square(bridge.alpha(t) / jnp.square(bridge.sigma(t)))


def truncated_snr(bridge: Bridge, t: Array) -> Array:
    """lambda = max(alpha^2 / sigma^2, 1) (Salimans and Ho, arXiv 2202.00512, section 4)."""
    return jnp.maximum(jnp.square(bridge.alpha(t) / bridge.sigma(t)), 1)


def ten_to(power: float) -> WeightFn:
    """lambda = 10^(power (1 - t / T)): the IBMD authors' weight of the student's loss, for inpainting power = 2."""

    def weight(bridge: Bridge, t: Array) -> Array:
        return jnp.float32(10.0) ** (power * (1 - t / bridge.T))

    return weight


def product(first: WeightFn, second: WeightFn) -> WeightFn:
    """Both weights multiplied."""
    return lambda bridge, t: first(bridge, t) * second(bridge, t)


# A configuration may also say "native", bridges.parametrisations.native_weight of its own parametrisation, and
# "native_ten_to_1", its product with ten_to_1, which the IBMD authors' code has for DDBM's students.
WEIGHTS: dict[str, WeightFn] = {
    "one": one,
    "g2": g2,
    "truncated_snr": truncated_snr,
    "ten_to_1": ten_to(1.0),
    "ten_to_2": ten_to(2.0),
}
