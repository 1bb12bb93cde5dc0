"""The parameters of the published PyTorch UNets under our names, and back.

PyTorch                                     ours                                   array
{b}.in_layers.0 / .2                        {b}/norm_in, conv_in                   convolution OIHW <-> HWIO
{b}.emb_layers.1                            {b}/emb                                linear OI <-> IO
{b}.out_layers.0 / .3, skip_connection      {b}/norm_out, conv_out, skip           norm weight  <-> scale
{b}.norm, qkv, proj_out                     {b}/norm, qkv, proj_out                1x1 convolution (2 to 4 axes) <-> IO
{b}.op, {b}.conv (resampling)               {b}_op, {b}_conv
time_embed.0 / .2, label_emb, out.0 / .2    time_embed_0 / _2, label_emb, out_0 / _2
with b = input_blocks.4.1 <-> input_blocks_4_1, and so on
"""

import re
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from ibmd_jax.convert.torch_file import release
from ibmd_jax.core.errors import UserError
from ibmd_jax.core.types import Array

LAYERS = {
    "in_layers.0": "/norm_in",
    "in_layers.2": "/conv_in",
    "emb_layers.1": "/emb",
    "out_layers.0": "/norm_out",
    "out_layers.3": "/conv_out",
    "skip_connection": "/skip",
    "norm": "/norm",
    "qkv": "/qkv",
    "proj_out": "/proj_out",
    "op": "_op",
    "conv": "_conv",
    "": "",
}
BLOCK = re.compile(
    r"((?:input_blocks|output_blocks)\.\d+\.\d+|middle_block\.\d+|time_embed\.\d|out\.\d|label_emb)\.?(.*)"
)


def our_name(name: str) -> str:
    """ "input_blocks.4.1.qkv.weight" -> "input_blocks_4_1/qkv/kernel". Raises: UserError for a foreign name."""
    path, _, kind = name.rpartition(".")
    match = BLOCK.fullmatch(path)
    if not match or match[2] not in LAYERS or kind not in ("weight", "bias"):
        raise UserError(f"the parameter {name!r} belongs to no ADM UNet")
    layer = match[1].replace(".", "_") + LAYERS[match[2]]
    if kind == "weight":
        last = layer.rpartition("/")[2]
        kind = "embedding" if last == "label_emb" else "scale" if "norm" in last or last == "out_0" else "kernel"
    return f"{layer}/{kind}"


def to_ours(name: str, value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A PyTorch parameter as an array of our shape: a view, not a copy. `name` is ours."""
    if name.endswith("/kernel"):
        if len(shape) == 2:  # dense; attention's come as 1x1 convolutions in one or two dimensions, too
            if value.shape[2:] not in ((), (1,), (1, 1)):
                return value
            return value.reshape(value.shape[:2]).T
        return np.moveaxis(value, (0, 1), (-1, -2))
    return value


def convert(state: Mapping[str, np.ndarray], expected: Mapping[str, tuple[int, ...]]) -> dict[str, Array]:
    """A state_dict under our names, checked: every expected parameter once, of its shape, and finite.

    Args: expected: our names and shapes. Returns: name -> float32 copy, in the order of `expected`.
    Raises: UserError with the first parameter that is missing, left over, of another shape, or not finite.
    """
    found = {our_name(name): (name, value) for name, value in state.items()}
    for name in expected:
        if name not in found:
            raise UserError(f"the checkpoint lacks the parameter {name!r} of this network")
    for name, (theirs, _) in found.items():
        if name not in expected:
            raise UserError(f"the checkpoint's parameter {theirs!r} has no place in this network")
    views = {name: to_ours(name, found[name][1], shape) for name, shape in expected.items()}
    for name, shape in expected.items():
        if views[name].shape != shape:
            theirs, value = found[name]
            raise UserError(f"parameter {theirs!r}: the checkpoint's is {value.shape}, this network's {name} {shape}")
    out = {}
    for name, view in views.items():
        if not np.isfinite(view).all():
            raise UserError(f"parameter {found[name][0]!r} holds values that are not finite")
        out[name] = jnp.asarray(view, jnp.float32)
        release(found[name][1])  # so that a mapped file takes no memory beside its copy
    return out


def torch_name(name: str) -> str:
    """The inverse of our_name. Raises: UserError for a parameter that no ADM UNet has."""
    layer, _, kind = name.rpartition("/")
    head, _, last = layer.partition("/")
    for suffix in ("_op", "_conv"):
        if not last and head.endswith(suffix):
            head, last = head.removesuffix(suffix), suffix
    layers = {ours.removeprefix("/"): theirs for theirs, ours in LAYERS.items()}
    stem = re.fullmatch(r"(input_blocks|output_blocks|middle_block|time_embed|out|label_emb)((?:_\d+)*)", head)
    if not stem or last not in layers:
        raise UserError(f"the parameter {name!r} belongs to no ADM UNet: only those can be written for PyTorch")
    parts = [stem[1] + stem[2].replace("_", "."), layers[last], "bias" if kind == "bias" else "weight"]
    return ".".join(p for p in parts if p)


def to_torch(params: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Our parameters as a state_dict; the inverse of `convert`.

    The student's noise input becomes what it stands for, further input channels of the first convolution. Attention's
    weights get three axes, as I2SB and DBIM have them.
    """
    params, out = dict(params), {}
    noise = params.pop("noise_in/kernel", None)
    if noise is not None:
        first = params["input_blocks_0_0/kernel"]
        params["input_blocks_0_0/kernel"] = np.concatenate([first, noise], axis=2)
    for name, value in params.items():
        if name.endswith("/kernel"):
            value = value.T if value.ndim == 2 else np.moveaxis(value, (-1, -2), (0, 1))
        if name.endswith(("/qkv/kernel", "/proj_out/kernel")):
            value = value[..., None]
        out[torch_name(name)] = np.ascontiguousarray(value)
    return out
