"""The blocks of ADM (Dhariwal and Nichol, arXiv 2105.05233), which I2SB, DDBM and DBIM share.

Kept from the published networks because checkpoints depend on it: GroupNorm epsilon 1e-5, SiLU, timestep embedding
with the cosines first, scale-shift normalisation, and zero-initialised last convolutions.
Images are [B, H, W, C]; parameters are float32, and so are activations unless a dtype is given.
"""

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.custom_derivatives import SymbolicZero

from ibmd_jax.core.types import Array
from ibmd_jax.networks.convolution import convolve


def timestep_embedding(t: Array, dim: int, max_period: float = 1e4) -> Array:
    """[cos(t w_i) | sin(t w_i)], w_i = max_period^(-i / half). t [B] -> [B, dim] float32; dim is even."""
    half = dim // 2
    frequencies = jnp.exp(jnp.arange(half, dtype=jnp.float32) * (-math.log(max_period) / half))
    angles = t.astype(jnp.float32)[:, None] * frequencies[None, :]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class GroupNorm(nn.Module):
    """GroupNorm over groups of neighbouring channels, computed in float32; x [B, ..., C] -> the same shape and dtype.

    Unlike nn.GroupNorm it takes means of the channels before those of the groups, so that an image keeps its layout,
    and it is one product and one sum, as PyTorch's: a third of the rounding error, and the demo network's forward pass
    takes an eighth less on CPU. The variance is E[x^2] - E[x]^2, as there: exact where means are not much larger than
    deviations. Raises: ValueError if the groups do not divide the channels.
    """

    groups: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        b, c = x.shape[0], x.shape[-1]
        if c % self.groups:
            raise ValueError(f"groups = {self.groups} of a GroupNorm do not divide its {c} channels")
        scale = self.param("scale", nn.initializers.ones, (c,))
        bias = self.param("bias", nn.initializers.zeros, (c,))

        def mean(v: Array) -> Array:
            """[B, ..., C] -> [B, C], the same number for the channels of a group."""
            of_channels = v.mean(tuple(range(1, v.ndim - 1))).reshape(b, self.groups, -1)
            return jnp.broadcast_to(of_channels.mean(-1, keepdims=True), of_channels.shape).reshape(b, c)

        h = jnp.asarray(x, jnp.float32)
        first, second = mean(h), mean(jnp.square(h))
        factor = jax.lax.rsqrt(jnp.maximum(second - jnp.square(first), 0) + 1e-5) * scale[None]
        shape = (b, *[1] * (x.ndim - 2), c)
        return (h * factor.reshape(shape) + (bias[None] - first * factor).reshape(shape)).astype(x.dtype)


def check_settings(dtype: str, attention: Iterable[int] = (), levels: Sequence[int] = ()) -> None:
    """Raises: ValueError for a dtype but float32 and bfloat16, or attention at a level that the network lacks."""
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"dtype = {dtype!r}: it must be float32 or bfloat16 (float16 would need its losses scaled)")
    if missing := sorted({*attention} - {*levels}):
        raise ValueError(f"attention = {(*attention,)}: there is no level {missing[0]}, only {(*levels,)}")


def condition_embedding(cond: Any, classes: int, embedding: int, features: int) -> Array | None:
    """What a network adds to its time embedding: [B, features], or None without conditioning; called in a module.

    classes: number of labels in cond [B] int32, which have a row each. embedding: width of cond [B, embedding]
    float32, which goes through a dense layer. Raises: ValueError for both, and for a cond that is not that.
    """
    if classes and embedding:
        raise ValueError(f"a network has labels or embeddings, not classes = {classes} and embedding = {embedding}")
    if classes:
        if cond is None:
            raise ValueError(f"a network of {classes} classes needs labels: cond is None")
        return nn.Embed(classes, features, name="label_emb")(cond)
    if embedding:
        if cond is None or cond.shape[1:] != (embedding,):
            found = "None" if cond is None else f"of shape {cond.shape}"
            raise ValueError(f"a network with embedding = {embedding} needs cond [B, {embedding}]: it is {found}")
        return nn.Dense(features, name="text_emb")(cond)
    return None


class Conv(nn.Module):
    """A size x size convolution with a bias and PyTorch's symmetric padding; zero: starts as the zero map.

    dtype: of the products. The bias is added in float32, for the sake of its gradient: a sum over all pixels.
    """

    features: int
    size: int
    zero: bool = False
    dtype: Any = jnp.float32
    stride: int = 1

    @nn.compact
    def __call__(self, x: Array) -> Array:
        init = nn.initializers.zeros if self.zero else nn.initializers.lecun_normal()
        kernel = self.param("kernel", init, (self.size, self.size, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        h = convolve(x.astype(self.dtype), kernel.astype(self.dtype), self.stride)
        return (h.astype(jnp.float32) + bias[None, None, None]).astype(self.dtype)


@jax.custom_jvp
def in_order(params: Any, inputs: Any) -> tuple[Any, Any]:
    """Both as they are, for a function of them whose backward pass has the gradients of both before it is left.

    XLA:TPU puts off what nothing waits for: the activations that the parameters' gradients are made of would pile up
    on the way back through what made the inputs. Where parameters are not differentiated, nothing waits for them.
    """
    return params, inputs


@functools.partial(in_order.defjvp, symbolic_zeros=True)
def _in_order_tangents(primals: tuple[Any, Any], tangents: tuple[Any, Any]) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    leaves, tree = jax.tree.flatten(tangents)
    if not all(isinstance(x, SymbolicZero) for x in jax.tree.leaves(tangents[0])):
        moving = [x for x in leaves if not isinstance(x, SymbolicZero)]
        waiting = iter(jax.lax.optimization_barrier(moving))  # its own transpose: the gradients wait, too
        leaves = [x if isinstance(x, SymbolicZero) else next(waiting) for x in leaves]
    return primals, tree.unflatten(leaves)


def _computed_again(block: type[nn.Module]) -> Callable[..., Callable[..., Any]]:
    """A class of blocks with parameters alone, to be used alike, that the backward pass computes again."""

    def make(*settings: Any, **named: Any) -> Callable[..., Any]:
        module = block(*settings, **named)

        def call(*inputs: Any) -> Any:
            if module.is_initializing():
                return module(*inputs)

            @jax.checkpoint
            def function(params: Any, inputs: Any) -> Any:
                return module.clone(parent=None).apply({"params": params}, *inputs, rngs=module.scope.rngs)

            return function(*in_order(module.variables["params"], inputs))

        return call

    return make


def recomputed(remat: str, *blocks: Any) -> tuple[Any, ...]:
    """The blocks, classes or functions of a module, of a network whose `remat` is "none", "block" or "full".

    "block": the backward pass keeps each block's inputs, and computes the block again. "full": it keeps the network's
    inputs alone (networks.adapters.from_linen sees to that), so that a student has no activations while other networks
    are differentiated, and then does as "block". Raises: ValueError for another name.
    """
    if remat not in ("none", "block", "full"):
        raise ValueError(f"remat = {remat!r}: it must be none, block or full")
    if remat == "none":
        return blocks
    return tuple(_computed_again(b) if isinstance(b, type) else nn.remat(b) for b in blocks)


# Neither makes an array of pairs of pixels, as repeat and a mean of pairs do: XLA:TPU estimates four times as long for
# those, and 9 % longer for the gradient of an ADM network.
def upsample(x: Array) -> Array:
    """Nearest neighbour, twice the height and width."""
    b, h, w, c = x.shape
    x = jnp.concatenate([x, x], -1).reshape(b, h, 2 * w, c)
    return jnp.concatenate([x, x], 2).reshape(b, 2 * h, 2 * w, c)


def downsample(x: Array) -> Array:
    """Mean of 2 x 2 pixels, taken in float32. Raises: ValueError unless height and width are even."""
    if x.shape[1] % 2 or x.shape[2] % 2:
        raise ValueError(f"activations of {x.shape[1]} x {x.shape[2]} pixels cannot be halved")
    window = (1, 2, 2, 1)
    total = jax.lax.reduce_window(x.astype(jnp.float32), 0.0, jax.lax.add, window, window, "VALID")
    return (total / 4).astype(x.dtype)


def space_to_depth(x: Array, p: int) -> Array:
    """[B, H, W, C] -> [B, H/p, W/p, p p C]."""
    b, h, w, c = x.shape
    return x.reshape(b, h // p, p, w // p, p, c).transpose(0, 1, 3, 2, 4, 5).reshape(b, h // p, w // p, p * p * c)


def depth_to_space(x: Array, p: int) -> Array:
    """Inverse of space_to_depth."""
    b, h, w, c = x.shape
    return x.reshape(b, h, w, p, p, c // (p * p)).transpose(0, 1, 3, 2, 4, 5).reshape(b, h * p, w * p, c // (p * p))


class ResBlock(nn.Module):
    """Residual block with time conditioning; optionally resamples both of its paths.

    Of x [B, H, W, C], emb [B, E], and a skipped activation [B, H, W, C'] that further channels of x are made of. They
    are joined here so that of a recomputed block the parts are kept, which other blocks keep, too.
    features: output channels. groups: of every GroupNorm. resample: "up", "down" or None.
    scale_shift: the embedding scales and shifts after the second norm; otherwise it is added before it.
    dtype: of convolutions; norms are in float32. dropout: rate before the last convolution, where a key "dropout" is
        given to `apply`; without one nothing is dropped.
    """

    features: int
    groups: int = 32
    resample: str | None = None
    scale_shift: bool = True
    dtype: Any = jnp.float32
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: Array, emb: Array, skip: Array | None = None) -> Array:
        x = x if skip is None else jnp.concatenate([x, skip], axis=-1)
        resample = {"up": upsample, "down": downsample, None: lambda v: v}[self.resample]
        h = nn.silu(GroupNorm(self.groups, name="norm_in")(x))
        h = Conv(self.features, 3, dtype=self.dtype, name="conv_in")(resample(h))
        emb = nn.Dense((1 + self.scale_shift) * self.features, name="emb")(nn.silu(emb))
        emb = emb.astype(h.dtype)[:, None, None, :]
        if self.scale_shift:
            scale, shift = jnp.split(emb, 2, axis=-1)
            h = GroupNorm(self.groups, name="norm_out")(h) * (1 + scale) + shift
        else:
            h = GroupNorm(self.groups, name="norm_out")(h + emb)
        h = nn.Dropout(self.dropout, deterministic=not self.has_rng("dropout"))(nn.silu(h))
        h = Conv(self.features, 3, zero=True, dtype=self.dtype, name="conv_out")(h)
        x = resample(x)
        if x.shape[-1] != self.features:
            x = Conv(self.features, 1, dtype=self.dtype, name="skip")(x)
        return x + h


def attend_by_head(*qkv: Array) -> Array:
    """jax.nn.dot_product_attention, one head after the other, each once more in the backward pass."""
    heads = jax.tree.map(lambda x: jnp.moveaxis(x[..., None, :], 2, 0), qkv)
    found = jax.lax.map(jax.checkpoint(lambda x: jax.nn.dot_product_attention(*x)), heads)
    return jnp.moveaxis(found, 0, 2)[..., 0, :]


def attend(q: Array, k: Array, v: Array) -> Array:
    """softmax(q k^T / sqrt(D)) v, the softmax in float32; q, k, v and what it returns [B, pixels, heads, D].

    On TPU by head: products of all pixels with all pixels then fit into the memory beside the arithmetic, which halves
    the compiler's estimate at 32 x 32 pixels.
    """
    return jax.lax.platform_dependent(q, k, v, tpu=attend_by_head, default=jax.nn.dot_product_attention)


class AttentionBlock(nn.Module):
    """Self-attention over all pixels with a residual path; head_channels is the width of one head.

    legacy: the channels of qkv are ordered [head][q, k, v], as in I2SB and DBIM's ImageNet network, or else
        [q, k, v][head], as in DDBM.
    """

    head_channels: int
    groups: int = 32
    legacy: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        b, height, width, c = x.shape
        heads, d = c // self.head_channels, self.head_channels
        h = GroupNorm(self.groups, name="norm")(x).reshape(b, height * width, c)
        qkv = nn.Dense(3 * c, name="qkv", dtype=self.dtype)(h)
        if self.legacy:
            qkv = qkv.reshape(b, height * width, heads, 3, d).swapaxes(2, 3)
        else:
            qkv = qkv.reshape(b, height * width, 3, heads, d)
        h = attend(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2])
        h = h.reshape(b, height * width, c)
        h = nn.Dense(c, kernel_init=nn.initializers.zeros, name="proj_out", dtype=self.dtype)(h)
        return x + h.reshape(x.shape)
