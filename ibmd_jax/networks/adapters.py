"""Flax modules as the Network contract: two pure functions over a tree of parameters."""

from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn
from flax import nnx

from ibmd_jax.core.errors import UserError
from ibmd_jax.core.types import Array, Key, Network, Params


def from_linen(module: nn.Module) -> Network:
    """A Linen module called as module(x, t, cond, z), with the random stream "dropout" where there is a key.

    If it has a field `remat` that is "full", a backward pass keeps its inputs alone and computes it again. What it sows
    as ("intermediates", "features") are its features; to ask for those of one that sows none is a UserError.
    """

    def init(key: Key, x: Array, t: Array, cond: Any = None, z: Array | None = None) -> Params:
        return module.init(key, x, t, cond, z)["params"]

    def apply(
        params: Params, x: Array, t: Array, cond: Any = None, z: Array | None = None, key: Key | None = None
    ) -> Array:
        rngs = None if key is None else {"dropout": key}
        return module.apply({"params": params}, x, t, cond, z, rngs=rngs)

    def features(params: Params, x: Array, t: Array, cond: Any = None, z: Array | None = None) -> tuple[Array, Array]:
        out, sown = module.apply({"params": params}, x, t, cond, z, mutable=["intermediates"])
        found = sown.get("intermediates", {}).get("features")
        if found is None:
            raise UserError(
                f"{type(module).__name__} sows no features, which this method asks for: before its last layer it needs "
                "self.sow('intermediates', 'features', activations)"
            )
        return out, found[0]

    if getattr(module, "remat", "none") == "full":
        apply, features = jax.checkpoint(apply), jax.checkpoint(features)
    return Network(init, apply, features)


def from_nnx(make: Callable[[nnx.Rngs], nnx.Module]) -> Network:
    """An NNX module, made by make(rngs) and called as module(x, t, cond, z).

    NNX modules fix their input channels when they are made, so a student with noise input needs a `make` that
    builds them in. State other than nnx.Param (batch statistics, random states) has no place in the contract.

    Raises: TypeError if the module holds such state.
    """
    graph, _, rest = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))), nnx.Param, ...)
    if jax.tree.leaves(rest):
        raise TypeError(f"from_nnx: only nnx.Param state is supported, the module also holds {rest}")

    def init(key: Key, x: Array, t: Array, cond: Any = None, z: Array | None = None) -> Params:
        return nnx.to_pure_dict(nnx.state(make(nnx.Rngs(key)), nnx.Param))

    def apply(params: Params, x: Array, t: Array, cond: Any = None, z: Array | None = None) -> Array:
        state = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))), nnx.Param)[1]
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(graph, state)(x, t, cond, z)

    return Network(init, apply)
