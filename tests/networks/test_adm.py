"""The full ADM UNet against the published PyTorch networks: sizes, operations, outputs and every block's activation."""

import json
import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict
from parameters import perturb

from ibmd_jax.convert.__main__ import shapes_of
from ibmd_jax.convert.names import convert
from ibmd_jax.convert.published import network_settings
from ibmd_jax.networks import NETWORKS
from ibmd_jax.networks.adapters import from_linen
from ibmd_jax.networks.adm import ADM
from ibmd_jax.networks.blocks import ResBlock

GOLDEN = Path(__file__).parents[1] / "golden"
# Size, input channels, parameters, tensors, 10^9 operations of a forward pass at batch 1 (PyTorch's counter).
PUBLISHED = {
    "i2sb-256": (256, 3, 552_807_171, 566, 2238.8),
    "i2sb-256 with x_T": (256, 6, 552_814_083, 566, 2239.7),
    "ddbm-diode-256": (256, 6, 552_814_083, 566, 2239.7),
    "dbim-imagenet-256": (256, 6, 553_838_083, 567, 2239.7),
    "ddbm-e2h-64": (64, 6, 295_136_451, 540, 219.4),
}


def operations(jaxpr):
    """Multiplications and additions of all convolutions and matrix products, borders of padding included."""
    total = 0
    for equation in jaxpr.eqns:
        for value in equation.params.values():  # of branches, which are for other platforms, the largest
            inner = [getattr(v, "jaxpr", v) for v in (value if isinstance(value, tuple) else (value,))]
            total += max(operations(v) if hasattr(v, "eqns") else 0 for v in inner or (0,))
        out = equation.outvars[0].aval.shape
        if equation.primitive.name == "conv_general_dilated":
            total += 2 * math.prod(out) * math.prod(equation.invars[1].aval.shape[:-1])
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            total += 2 * math.prod(out) * math.prod(equation.invars[0].aval.shape[i] for i in contracted)
    return total


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_and_operations_of_the_published_networks(name):
    size, channels, parameters, tensors, giga = PUBLISHED[name]
    network = NETWORKS[name.split()[0]]()
    x, t = jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.float32)
    labels = jax.ShapeDtypeStruct((1,), jnp.int32) if network.classes else None
    params = jax.eval_shape(network.init, jax.random.key(0), x, t, labels)
    leaves = jax.tree.leaves(params)
    assert sum(math.prod(leaf.shape) for leaf in leaves) == parameters
    assert len(leaves) == tensors
    found = operations(jax.make_jaxpr(network.apply)(params, x, t, labels).jaxpr) / 1e9
    np.testing.assert_allclose(found, giga, rtol=0.01)


def golden(path):
    """Settings, parameters, inputs and outputs of one stored network; images as NHWC."""
    with np.load(path) as file:
        g = dict(file)
    note = json.loads((GOLDEN / "MANIFEST.json").read_text())[path.name]["note"]
    kwargs = json.loads(re.search(r"\{.*\}", note)[0])
    state = {k.removeprefix("sd/"): v for k, v in g.items() if k.startswith("sd/")}
    settings = network_settings(state, kwargs["num_head_channels"])
    settings["legacy_attention"] = kwargs.get("attention_type") != "flash" and not kwargs["use_new_attention_order"]
    x = np.concatenate([g["x"], g["xT"]], axis=1) if "xT" in g else g["x"]
    params = unflatten_dict(convert(state, shapes_of(settings, x.shape[1])), sep="/")
    del settings["name"]
    return settings, params, x.transpose(0, 2, 3, 1), g


every_golden = pytest.mark.parametrize("path", sorted(GOLDEN.glob("*_unet.npz")), ids=lambda p: p.stem)


def run(settings, params, x, g, **more):
    y = jax.jit(ADM(**{**settings, **more}).apply)({"params": params}, x, g["t"], g.get("y_label"))
    return np.asarray(y).transpose(0, 3, 1, 2)


@every_golden
def test_outputs_and_activations_are_the_peer_s(path):
    settings, params, x, g = golden(path)
    np.testing.assert_allclose(run(settings, params, x, g), g["y"], atol=1e-4)
    assert np.abs(run(settings, params, x, g, legacy_attention=not settings["legacy_attention"]) - g["y"]).max() > 0.1
    if "y_legacy" in g:
        np.testing.assert_allclose(run(settings, params, x, g, legacy_attention=True), g["y_legacy"], atol=1e-4)

    _, state = ADM(**settings).apply({"params": params}, x[:1], g["t"][:1], capture_intermediates=True)
    blocks = state["intermediates"]
    for name in (k for k in g if k.startswith("act/")):
        stem = name.removeprefix("act/").replace(".", "_")
        last = sorted(k for k in blocks if k.startswith(stem + "_") or k == stem)[-1]
        found = np.asarray(blocks[last]["__call__"][0]).transpose(0, 3, 1, 2)
        np.testing.assert_allclose(found, g[name], atol=1e-4, err_msg=name)


@pytest.mark.usefixtures("lenient")  # jax.nn.dot_product_attention promotes bfloat16 inside
@every_golden
def test_bfloat16_is_close(path):
    settings, params, x, g = golden(path)
    y = run(settings, params, x, g, dtype="bfloat16")
    assert y.dtype == np.float32
    assert np.abs(y - g["y"]).max() < 3e-2 * np.abs(g["y"]).max()
    assert (y != run(settings, params, x, g)).any()


@pytest.mark.parametrize(
    "settings", [{"resblock_updown": False}, {"scale_shift": False}, {"head_channels": 0, "heads": 2}]
)
def test_the_other_constructor_options_change_the_parameters_as_they_say(settings):
    small = {"channels": 32, "multipliers": (1, 2), "blocks": 1, "attention": (2,), "head_channels": 16}
    x, t = jnp.ones((1, 8, 8, 3)), jnp.ones(1)
    params = jax.eval_shape(ADM(**{**small, **settings}).init, jax.random.key(0), x, t)["params"]
    plain = jax.eval_shape(ADM(**small).init, jax.random.key(0), x, t)["params"]
    if "resblock_updown" in settings:
        assert params["input_blocks_2_0_op"]["kernel"].shape == (3, 3, 32, 32)
        assert params["output_blocks_1_2_conv"]["kernel"].shape == (3, 3, 64, 64)
    elif "scale_shift" in settings:
        assert params["middle_block_0"]["emb"]["kernel"].shape == (128, 64)
    else:
        assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, plain)


def test_labels_are_needed_and_matter():
    network = ADM(channels=32, multipliers=(1,), blocks=1, attention=(), head_channels=16, classes=5)
    x, t = jnp.ones((2, 8, 8, 3)), jnp.ones(2)
    params = perturb(jax.jit(network.init)(jax.random.key(0), x, t, jnp.array([0, 1])))
    y = jax.jit(network.apply)(params, x, t, jnp.array([0, 1]))
    assert jnp.abs(y[0] - y[1]).max() > 1e-3
    with pytest.raises(ValueError, match="a network of 5 classes needs labels"):
        network.apply(params, x, t)


def test_dropout_needs_a_key_and_keeps_the_mean():
    small = {"channels": 32, "multipliers": (1,), "blocks": 1, "attention": (), "head_channels": 16}
    x, t = jax.random.normal(jax.random.key(0), (2, 8, 8, 3)), jnp.ones(2)
    network, plain = (from_linen(ADM(**small, dropout=rate)) for rate in (0.1, 0.0))
    params = perturb(jax.jit(plain.init)(jax.random.key(1), x, t))
    dropping, apply = jax.jit(network.apply), jax.jit(plain.apply)
    expected = apply(params, x, t)
    np.testing.assert_array_equal(dropping(params, x, t), expected)
    np.testing.assert_array_equal(apply(params, x, t, None, None, jax.random.key(2)), expected)
    keys = jax.random.split(jax.random.key(3), 2)
    a, b = (dropping(params, x, t, None, None, key) for key in keys)
    assert jnp.abs(a - expected).max() > 1e-3
    assert jnp.abs(a - b).max() > 1e-3
    np.testing.assert_array_equal(a, dropping(params, x, t, None, None, keys[0]))
    block = ResBlock(32, dropout=0.5)
    h, emb = jax.random.normal(keys[0], (1, 4, 4, 32)), jnp.ones((1, 8))
    weights = perturb(jax.jit(block.init)(keys[1], h, emb))
    drawn = jax.vmap(lambda k: block.apply(weights, h, emb, rngs={"dropout": k}))(jax.random.split(keys[0], 4000))
    np.testing.assert_allclose(drawn.mean(0), block.apply(weights, h, emb), atol=0.1)
    assert drawn.std(0).max() > 0.5
