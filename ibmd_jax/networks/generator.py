"""A student's first parameters: its teacher's, and zeros for what the teacher does not see.

That is the noise z (IBMD, appendix B), and the label of the task where there are several teachers. And the time that a
student of noise is told.
"""

from typing import Any

import jax
import jax.numpy as jnp

from ibmd_jax.core.arrays import expand
from ibmd_jax.core.errors import UserError
from ibmd_jax.core.types import Array, Denoise, Params


def with_new_inputs(teacher: Params, fresh: Params) -> Params:
    """Every weight of the teacher, and zeros where only `fresh` has one.

    So the untrained student G(x_T, z) equals the teacher at t = T bit for bit.

    Args:
        teacher: parameters of the network without the inputs.
        fresh: parameters that the same network initialises with noise input, or with labels; only its structure, shapes
            and dtypes are used.
    Raises: UserError if the teacher has a parameter that `fresh` lacks, or of another shape.
    """
    old = dict(jax.tree_util.tree_flatten_with_path(teacher)[0])
    flat, structure = jax.tree_util.tree_flatten_with_path(fresh)
    leaves = []
    for path, leaf in flat:
        given = old.pop(path, None)
        if given is None:
            given = jnp.zeros(leaf.shape, leaf.dtype)
        if given.shape != leaf.shape:
            name = jax.tree_util.keystr(path)
            raise UserError(f"parameter {name}: the teacher's is {given.shape}, the student's {leaf.shape}")
        leaves.append(given)
    if old:
        raise UserError(f"parameter {jax.tree_util.keystr(next(iter(old)))} of the teacher has no place in the student")
    return jax.tree.unflatten(structure, leaves)


def told_earlier(denoise: Denoise, bridge: Any, t_start: float, from_noise: bool) -> Denoise:
    """The same, but where t = T the network is told t_start, and sees a state of that time.

    from_noise: x_T is noise alone (diffusion models, flows): it is scaled to that time's deviation. Told T, their
    teacher answers with the mean of all images, which is a poor start; SiD (arXiv 2404.04057, section 3.4) starts where
    sigma / alpha is 2.5.
    Else the state is one of the bridge from x_T to itself, (a + b) x_T + c z: noise z, of the shape of x_T, enters
    where the teacher has learned what to make of it. As zero-initialised channels it first has to be noticed: while x_0
    does not depend on z, the mean gradient of their weights is 0.
    """
    start, end = jnp.float32(t_start), jnp.float32(bridge.T)

    def first_state(x_T: Array, z: Array | None) -> tuple[Array, Array | None]:
        """And what is left for the network to see of z."""
        if from_noise:
            return bridge.sigma(start) / bridge.sigma(end) * x_T, z
        a, b, c = bridge.coeffs(start)
        return (a + b) * x_T + c * z, None

    def told(
        params: Params, x_t: Array, t: Array, x_T: Any = None, cond: Any = None, z: Any = None, **more: Any
    ) -> Any:
        t = jnp.broadcast_to(jnp.asarray(t, x_t.dtype), x_t.shape[:1])
        at_end, (state, z) = t >= end, first_state(x_t, z)
        x_t, t = jnp.where(expand(at_end, x_t), state, x_t), jnp.where(at_end, start, t)
        return denoise(params, x_t, t, x_T, cond, z, **more)

    return told
