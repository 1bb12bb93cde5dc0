"""The student's head: a teacher's parameters plus zero-initialised weights for the noise z (IBMD, appendix B)."""

import jax

from ibmd_jax.core.errors import UserError
from ibmd_jax.core.types import Params


def with_noise_input(teacher: Params, fresh: Params) -> Params:
    """The student's first parameters: every weight of the teacher, and `fresh`'s where the teacher has none.

    The fresh leaves start at zero, so the untrained student G(x_T, z) equals the teacher at t = T bit for bit.

    Args:
        teacher: parameters of the network without noise input.
        fresh: parameters that the same network initialises with noise input; its structure is the result's.
    Raises: UserError if the teacher has a parameter that `fresh` lacks, or of another shape.
    """
    old = dict(jax.tree_util.tree_flatten_with_path(teacher)[0])
    flat, structure = jax.tree_util.tree_flatten_with_path(fresh)
    leaves = []
    for path, leaf in flat:
        given = old.pop(path, leaf)
        if given.shape != leaf.shape:
            name = jax.tree_util.keystr(path)
            raise UserError(f"parameter {name}: the teacher's is {given.shape}, the student's {leaf.shape}")
        leaves.append(given)
    if old:
        raise UserError(f"parameter {jax.tree_util.keystr(next(iter(old)))} of the teacher has no place in the student")
    return jax.tree.unflatten(structure, leaves)
