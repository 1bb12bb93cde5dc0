import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from parameters import perturb

from ibmd_jax.bridges import DDBMVP, I2SB
from ibmd_jax.bridges.parametrisations import PARAMETRISATIONS, ddbm, eps, estimate
from ibmd_jax.core.errors import UserError
from ibmd_jax.core.types import Conditioning
from ibmd_jax.networks import NETWORKS
from ibmd_jax.networks.adapters import from_linen, from_nnx
from ibmd_jax.networks.adm import PRESETS
from ibmd_jax.networks.blocks import (
    AttentionBlock,
    Conv,
    GroupNorm,
    ResBlock,
    attend,
    attend_by_head,
    depth_to_space,
    downsample,
    space_to_depth,
    timestep_embedding,
    upsample,
)
from ibmd_jax.networks.denoiser import init_denoiser, make_denoiser
from ibmd_jax.networks.generator import with_new_inputs
from ibmd_jax.networks.unet import UNet
from ibmd_jax.preflight.program import count_flops

SMALL = {
    "adm": {"channels": 8, "multipliers": (1,), "blocks": 1, "attention": (1,), "head_channels": 8, "groups": 4},
    "dit": {"channels": 16, "depth": 2, "heads": 2},
    "mlp": {"out_channels": 3, "width": 16},
    "unet": {"channels": (8, 16), "attention": (1,), "head_channels": 8, "groups": 4},
}
every_network = pytest.mark.parametrize("name", [name for name in NETWORKS if name not in PRESETS])
X = jax.random.normal(jax.random.key(0), (2, 16, 16, 3))
T = jnp.array([0.3, 1.0])


def init(network, key=0, **settings):
    return init_denoiser(network, jax.random.key(key), (16, 16, 3), **settings)


@every_network
def test_a_network_keeps_the_shape_and_starts_at_zero(name):
    network = from_linen(NETWORKS[name](**SMALL[name]))
    params = init(network)
    y = jax.jit(network.apply)(params, X, T)
    assert y.shape == X.shape
    assert y.dtype == jnp.float32
    np.testing.assert_array_equal(y, 0)


@every_network
def test_the_untrained_student_equals_the_teacher_bit_for_bit(name):
    network, bridge = from_linen(NETWORKS[name](**SMALL[name])), I2SB()
    denoise = jax.jit(make_denoiser(network, bridge, eps))
    teacher = perturb(init(network))
    fresh = init(network, 1, noise_channels=2)
    student = with_new_inputs(teacher, fresh)
    z = jax.random.normal(jax.random.key(2), (2, 16, 16, 2))
    np.testing.assert_array_equal(denoise(student, X, bridge.T, z=z), denoise(teacher, X, bridge.T))
    moved = perturb(student)
    assert (denoise(moved, X, bridge.T, z=z) != denoise(moved, X, bridge.T, z=2 * z)).any()


@every_network
def test_the_noise_weights_get_a_gradient(name):
    network = from_linen(NETWORKS[name](**SMALL[name]))
    params = perturb(init(network))
    student = with_new_inputs(params, init(network, 1, noise_channels=1))
    z = jax.random.normal(jax.random.key(2), (2, 16, 16, 1))
    grads = jax.jit(jax.grad(lambda p: jnp.square(network.apply(p, X, T, None, z)).sum()))(student)
    assert float(optax.tree.norm(grads["noise_in"])) > 0


def test_with_new_inputs_names_what_does_not_fit():
    old, new = {"a": jnp.ones((3, 4)), "b": jnp.ones(2)}, {"a": jnp.ones((3, 5)), "b": jnp.ones(2)}
    with pytest.raises(UserError, match=r"\['a'\].*\(3, 4\).*\(3, 5\)"):
        with_new_inputs(old, new)
    with pytest.raises(UserError, match=r"\['b'\] of the teacher has no place"):
        with_new_inputs(old, {"a": old["a"]})


@every_network
def test_the_time_changes_the_output(name):
    network = from_linen(NETWORKS[name](**SMALL[name]))
    params = perturb(init(network))
    apply = jax.jit(network.apply)
    assert (apply(params, X, T) != apply(params, X, T + 0.1)).any()


CONDITIONED = {
    "classes": ({"classes": 3}, jnp.array([0, 2])),
    "embedding": ({"embedding": 8}, jax.random.normal(jax.random.key(3), (2, 8))),
}


@pytest.mark.parametrize("kind", CONDITIONED)
@pytest.mark.parametrize("name", ["adm", "dit", "unet"])
def test_the_condition_changes_the_output_and_gets_a_gradient(name, kind):
    settings, cond = CONDITIONED[kind]
    network = from_linen(NETWORKS[name](**SMALL[name], **settings))
    params = perturb(init(network, cond=Conditioning(**settings).example()))
    x, t = X[:1, :8, :8].repeat(2, 0), T[:1].repeat(2)

    def loss(p, cond):
        y = network.apply(p, x, t, cond)
        return jnp.square(y).sum(), y

    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (_, y), grads = step(params, cond)
    assert jnp.abs(y[0] - y[1]).max() > 1e-3
    (_, same), _ = step(params, jnp.stack([cond[0], cond[0]]))
    np.testing.assert_allclose(same[1], y[0], atol=1e-5)
    (layer,) = {"label_emb", "text_emb"} & grads.keys()
    assert layer == {"classes": "label_emb", "embedding": "text_emb"}[kind]
    assert all(float(jnp.abs(g).max()) > 0 for g in jax.tree.leaves(grads[layer]))


@pytest.mark.parametrize("name", ["adm", "dit", "unet"])
def test_a_condition_that_does_not_fit_is_named(name):
    def made(cond, **settings):
        network = from_linen(NETWORKS[name](**SMALL[name], **settings))
        return jax.eval_shape(network.init, jax.random.key(0), X, T, cond)

    with pytest.raises(ValueError, match="not classes = 3 and embedding = 8"):
        made(jnp.zeros((2, 8)), classes=3, embedding=8)
    with pytest.raises(ValueError, match="a network of 3 classes needs labels: cond is None"):
        made(None, classes=3)
    with pytest.raises(ValueError, match=r"embedding = 8 needs cond \[B, 8\]: it is None"):
        made(None, embedding=8)
    with pytest.raises(ValueError, match=r"needs cond \[B, 8\]: it is of shape \(2,\)"):
        made(jnp.zeros(2, jnp.int32), embedding=8)
    assert not {"label_emb", "text_emb"} & made(None).keys()


def test_an_example_of_a_condition():
    assert Conditioning().example() is None
    for kind, (settings, cond) in CONDITIONED.items():
        found = Conditioning(**settings).example(2)
        assert (found.shape, found.dtype) == (cond.shape, cond.dtype), kind


def test_the_demo_network_has_the_size_it_is_meant_to_have():
    params = jax.eval_shape(lambda k: init_denoiser(from_linen(UNet(groups=16)), k, (32, 32, 3)), jax.random.key(0))
    assert 0.5e6 < sum(x.size for x in jax.tree.leaves(params)) < 1.5e6


def test_patches_round_trip_and_keep_pixels_together():
    np.testing.assert_array_equal(depth_to_space(space_to_depth(X, 2), 2), X)
    np.testing.assert_array_equal(space_to_depth(X, 2)[0, 1, 3].reshape(2, 2, 3), X[0, 2:4, 6:8])


@pytest.mark.usefixtures("lenient")
def test_group_norm_is_flax_s():
    x = 2 + jax.random.normal(jax.random.key(0), (2, 4, 6, 12))
    params = perturb(GroupNorm(3).init(jax.random.key(1), x))
    expected = nn.GroupNorm(3, epsilon=1e-5).apply(params, x)
    np.testing.assert_allclose(GroupNorm(3).apply(params, x), expected, atol=1e-5)
    half = GroupNorm(3).apply(params, x.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), expected, atol=0.05)
    with pytest.raises(ValueError, match="groups = 5 of a GroupNorm do not divide its 12 channels"):
        GroupNorm(5).init(jax.random.key(0), x)


def test_resampling_repeats_pixels_and_takes_their_mean_in_float32():
    x = X[:, :4, :6]
    np.testing.assert_array_equal(upsample(x), np.repeat(np.repeat(x, 2, 1), 2, 2))
    np.testing.assert_allclose(downsample(x)[0, 1, 2], np.mean(x[0, 2:4, 4:6], (0, 1)), rtol=1e-5)
    mean = downsample(x.astype(jnp.bfloat16))
    np.testing.assert_array_equal(mean, downsample(x.astype(jnp.bfloat16).astype(jnp.float32)).astype(jnp.bfloat16))
    with pytest.raises(ValueError, match="4 x 5 pixels cannot be halved"):
        downsample(x[:, :, :5])


def test_timestep_embedding_has_the_cosines_first():
    e = timestep_embedding(jnp.array([0.0, 2.0]), 8)
    np.testing.assert_array_equal(e[0], [1, 1, 1, 1, 0, 0, 0, 0])
    frequencies = 1e4 ** (-np.arange(4) / 4)
    np.testing.assert_allclose(e[1], np.concatenate([np.cos(2 * frequencies), np.sin(2 * frequencies)]), rtol=1e-5)


def test_res_block_is_scale_shift_normalisation_by_hand():
    """One group per channel, no resampling: the block written out in numpy."""
    block = ResBlock(4, groups=4)
    x, emb = jax.random.normal(jax.random.key(1), (1, 4, 4, 4)), jax.random.normal(jax.random.key(2), (1, 6))
    params = perturb(jax.jit(block.init)(jax.random.key(0), x, emb)["params"], 0.3)

    def norm(h, p):
        mean, var = h.mean((1, 2), keepdims=True), h.var((1, 2), keepdims=True)
        return (h - mean) / np.sqrt(var + 1e-5) * p["scale"] + p["bias"]

    def silu(h):
        return h / (1 + np.exp(-h))

    def conv(h, p):
        padded, k = np.pad(h, ((0, 0), (1, 1), (1, 1), (0, 0))), np.asarray(p["kernel"])
        return sum(padded[:, i : i + 4, j : j + 4] @ k[i, j] for i in range(3) for j in range(3)) + p["bias"]

    p = jax.tree.map(np.asarray, params)
    h = conv(silu(norm(np.asarray(x), p["norm_in"])), p["conv_in"])
    scale, shift = np.split(silu(np.asarray(emb)) @ p["emb"]["kernel"] + p["emb"]["bias"], 2, axis=-1)
    h = conv(silu(norm(h, p["norm_out"]) * (1 + scale[:, None, None]) + shift[:, None, None]), p["conv_out"])
    np.testing.assert_allclose(jax.jit(block.apply)({"params": params}, x, emb), x + h, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("resample", "side"), [("up", 8), ("down", 2)])
def test_res_block_resamples_both_paths(resample, side):
    block = ResBlock(4, groups=2, resample=resample)
    x = jnp.broadcast_to(jnp.arange(4, dtype=jnp.float32)[None, :, None, None], (1, 4, 4, 4))
    y, _ = jax.jit(block.init_with_output)(jax.random.key(0), x, jnp.zeros((1, 6)))
    rows = np.repeat(np.arange(4.0), 2) if resample == "up" else np.array([0.5, 2.5])
    np.testing.assert_array_equal(y[0, :, 0, 0], rows)  # the second path starts at zero
    assert y.shape == (1, side, side, 4)


def test_attention_is_the_softmax_over_all_pixels():
    block = AttentionBlock(head_channels=2, groups=2)
    x = jax.random.normal(jax.random.key(1), (1, 2, 3, 4))
    params = perturb(jax.jit(block.init)(jax.random.key(0), x)["params"], 0.3)
    h = nn.GroupNorm(num_groups=2, epsilon=1e-5).apply({"params": params["norm"]}, x)
    p = jax.tree.map(np.asarray, params)
    q, k, v = np.split(np.asarray(h).reshape(6, 4) @ p["qkv"]["kernel"] + p["qkv"]["bias"], 3, axis=-1)
    heads = []
    for i in (slice(0, 2), slice(2, 4)):
        w = np.exp(q[:, i] @ k[:, i].T / np.sqrt(2))
        heads.append(w / w.sum(-1, keepdims=True) @ v[:, i])
    out = np.concatenate(heads, -1) @ p["proj_out"]["kernel"] + p["proj_out"]["bias"]
    np.testing.assert_allclose(
        jax.jit(block.apply)({"params": params}, x), x + out.reshape(1, 2, 3, 4), rtol=2e-4, atol=2e-4
    )


@pytest.mark.usefixtures("lenient")  # JAX's attention promotes bfloat16 by itself
@pytest.mark.parametrize(("name", "widths"), [("adm", {3, 8}), ("unet", {12, 8, 16})])
def test_of_recomputed_blocks_no_activation_is_kept_in_float32_or_joined_to_a_skip(name, widths):
    network = from_linen(NETWORKS[name](**SMALL[name], remat="block", dtype="bfloat16"))
    kept = jax.eval_shape(lambda p: jax.vjp(lambda p: network.apply(p, X, T), p)[1], init(network))
    activations = [x for x in jax.tree.leaves(kept) if x.ndim == 4 and x.shape[0] == len(X)]
    assert activations
    assert {x.dtype.name for x in activations} == {"bfloat16"}
    assert {x.shape[-1] for x in activations} == widths


def barriers(jaxpr):
    """The inputs' shapes of every optimization_barrier, in those of calls, too."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == "optimization_barrier":
            found.append({v.aval.shape for v in equation.invars})
        for value in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "jaxpr") or hasattr(x, "eqns")):
            inner = getattr(value, "jaxpr", value)
            found += barriers(inner) if hasattr(inner, "eqns") else []
    return found


def test_recomputed_blocks_wait_for_the_gradients_of_their_parameters():
    network = from_linen(NETWORKS["dit"](**SMALL["dit"], remat="block"))
    params = init(network)
    gradient = jax.make_jaxpr(jax.grad(lambda p: network.apply(p, X, T).sum()))(params)
    parameters = {x.shape for x in jax.tree.leaves(params["block_0"])}
    together = [shapes for shapes in barriers(gradient.jaxpr) if shapes >= parameters | {(2, 64, 16)}]
    assert len(together) == SMALL["dit"]["depth"]


def test_parameters_that_are_not_trained_have_no_gradient_where_blocks_are_recomputed():
    operations = {}
    for remat in ("none", "block"):
        network = from_linen(NETWORKS["unet"](**SMALL["unet"], remat=remat))
        params = init(network)
        gradient = jax.make_jaxpr(jax.grad(lambda x, n=network, p=params: n.apply(p, x, T).sum()))(X).jaxpr
        operations[remat] = count_flops(gradient)
        assert not list(barriers(gradient))  # no part waits for another
    forward = count_flops(jax.make_jaxpr(lambda x: network.apply(params, x, T))(X).jaxpr)
    assert operations["none"] < operations["block"] < operations["none"] + forward


def test_a_recomputed_network_is_trained_in_one_place_and_frozen_in_another():
    """As in a student's update, by reverse and by forward mode: JAX traces a network once for both."""
    found = []
    for remat in ("none", "block", "full"):
        network = from_linen(NETWORKS["dit"](**SMALL["dit"], remat=remat))
        params = perturb(init(network))

        @jax.jit
        def loss(p, network=network, frozen=params):
            made = network.apply(p, X, T)
            wanted = jax.grad(lambda x: jnp.square(network.apply(frozen, x, T)).mean())(jax.lax.stop_gradient(made))
            return (made * wanted).sum() + network.apply(frozen, made, T).mean()

        found.append((jax.grad(loss)(params), jax.jvp(loss, (params,), (params,))))
    for other in found[1:]:
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), other, found[0])


def test_recomputed_blocks_drop_what_they_dropped():
    gradients = []
    for remat in ("none", "block", "full"):
        network = from_linen(NETWORKS["adm"](**SMALL["adm"], remat=remat, dropout=0.5))
        params = perturb(init(network))

        @jax.jit
        def loss(params, key, network=network):
            return jnp.square(network.apply(params, X, T, None, None, key)).mean()

        gradients.append(jax.grad(loss)(params, jax.random.key(3)))
    for other in gradients[1:]:
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), other, gradients[0])


def test_the_gradient_of_a_bias_is_summed_in_float32():
    """4096 ones in bfloat16, one after the other, stop at 256."""
    layer, x = Conv(1, 1, dtype=jnp.bfloat16), jnp.zeros((1, 64, 64, 1), jnp.bfloat16)
    params = layer.init(jax.random.key(0), x)
    text = jax.jit(jax.grad(lambda p: layer.apply(p, x).astype(jnp.float32).sum())).lower(params).as_text()
    sums = re.findall(r"stablehlo.reduce.*-> tensor<(\S*)>", text)
    assert {dtype.split("x")[-1] for dtype in sums} == {"f32"}


def test_attention_by_head_is_the_usual_one_and_is_for_tpu():
    x = jax.random.normal(jax.random.key(1), (3, 2, 6, 2, 4))

    def loss(f, x):
        return jnp.sin(f(*x)).sum(), f(*x)

    by_head, usual = (
        jax.jit(jax.grad(partial(loss, f), has_aux=True))(x) for f in (attend_by_head, jax.nn.dot_product_attention)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), by_head, usual)
    traced = jax.jit(attend).trace(*x)
    loops = {p: "stablehlo.while" in traced.lower(lowering_platforms=(p,)).as_text() for p in ("cpu", "cuda", "tpu")}
    assert loops == {"cpu": False, "cuda": False, "tpu": True}


def constant(value, seen=None):
    """A network whose output is `value`, and which notes what it was given."""

    def apply(params, x, t, cond, z):
        if seen is not None:
            seen.append((x, t))
        return jnp.broadcast_to(value, x.shape)

    return from_linen(nn.Dense(1))._replace(apply=apply)


@pytest.mark.parametrize("name", PARAMETRISATIONS)
def test_the_denoiser_turns_the_network_output_into_x_0(name):
    bridge, seen, t = DDBMVP(), [], jnp.array([0.3, 0.9])
    s = PARAMETRISATIONS[name](bridge, t)
    out = make_denoiser(constant(0.7 * X, seen), bridge, PARAMETRISATIONS[name])(None, X, t, 2 * X)
    np.testing.assert_allclose(out, estimate(s, 0.7 * X, X, 2 * X), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(seen[0][0], s.c_in[:, None, None, None] * X, rtol=1e-6)
    np.testing.assert_array_equal(seen[0][1], s.c_noise)


@pytest.mark.parametrize("name", ["adm", "dit", "unet"])
def test_remat_computes_the_same_gradient_with_more_operations(name):
    gradients, operations = {}, {}
    for remat in ("none", "block", "full"):
        network = from_linen(NETWORKS[name](**SMALL[name], remat=remat))
        params = perturb(init(network))
        gradient = jax.jit(jax.grad(lambda p, n=network: jnp.square(n.apply(p, X, T)).mean())).lower(params)
        operations[remat] = gradient.cost_analysis()["flops"]
        if remat != "full":
            gradients[remat] = jax.tree.leaves(gradient.compile()(params))
    assert operations["block"] > 1.1 * operations["none"]
    assert operations["full"] > 1.2 * operations["block"]  # the blocks, too
    for a, b in zip(gradients["block"], gradients["none"], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
    with pytest.raises(ValueError, match="it must be none, block or full"):
        init(from_linen(NETWORKS[name](**SMALL[name], remat="blocks")))


@pytest.mark.usefixtures("lenient")  # JAX's attention promotes bfloat16 by itself
@pytest.mark.parametrize("name", ["adm", "dit", "unet"])
def test_bfloat16_computes_nearly_the_same_from_float32_parameters(name):
    outputs = []
    for dtype in ("float32", "bfloat16"):
        network = from_linen(NETWORKS[name](**SMALL[name], dtype=dtype))
        params = perturb(init(network))
        assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}
        outputs.append(jax.jit(network.apply)(params, X, T))
    program = str(jax.make_jaxpr(network.apply)(params, X, T))
    products = re.findall(r":(\w+)\[[^\]]*\] = (?:conv_general_dilated|dot_general)\[", program)
    assert products.count("bf16") >= 8
    convolutions = re.findall(r":(\w+)\[[^\]]*\] = conv_general_dilated\[", program)
    assert set(convolutions[:-1]) <= {"bf16"}  # the last one makes the float32 output
    assert outputs[1].dtype == jnp.float32
    assert 1e-5 < jnp.abs(outputs[0] - outputs[1]).max() < 0.03 * jnp.abs(outputs[0]).max()


def test_a_conditional_denoiser_sees_x_T():
    network, bridge = from_linen(UNet(**SMALL["unet"])), I2SB()
    denoise = jax.jit(make_denoiser(network, bridge, ddbm, conditional=True))
    params = perturb(init(network, conditional=True))
    assert (denoise(params, X, T, X) != denoise(params, X, T, -X)).any()


class Tiny(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 3, (3, 3), rngs=rngs)
        self.time = nnx.Linear(1, 3, rngs=rngs)

    def __call__(self, x, t, cond=None, z=None):
        return self.conv(x) + self.time(t[:, None])[:, None, None, :]


def test_from_nnx_computes_what_the_module_computes():
    network = from_nnx(Tiny)
    params = network.init(jax.random.key(3), X, T)
    module = Tiny(nnx.Rngs(jax.random.key(3)))
    np.testing.assert_allclose(jax.jit(network.apply)(params, X, T), module(X, T), rtol=1e-6, atol=1e-6)


def test_from_nnx_trains():
    network, bridge = from_nnx(Tiny), I2SB()
    denoise = make_denoiser(network, bridge, eps)
    params = init(network)

    def loss(p):
        return jnp.square(denoise(p, X, T) - 0.1).mean()

    value, grads = jax.value_and_grad(loss)(params)
    assert loss(jax.tree.map(lambda p, g: p - 1e-7 * g, params, grads)) < value


def test_from_nnx_refuses_other_state():
    class Noisy(nnx.Module):
        def __init__(self, rngs):
            self.norm = nnx.BatchNorm(3, rngs=rngs)

    with pytest.raises(TypeError, match=r"only nnx\.Param"):
        from_nnx(Noisy)


def conv_by_xla(x, kernel):
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), [(1, 1)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC"))


@pytest.mark.parametrize(("size", "channels", "product"), [(4, 256, True), (4, 128, False), (32, 256, False)])
def test_small_convolutions_are_a_product_on_the_cpu(size, channels, product):
    k = jax.random.split(jax.random.key(0), 2)
    x, kernel = jax.random.normal(k[0], (2, size, size, channels)), jax.random.normal(k[1], (3, 3, channels, 16)) / 48
    layer = Conv(16, 3)
    params = {"params": {"kernel": kernel, "bias": jnp.arange(16.0)}}
    np.testing.assert_allclose(layer.apply(params, x), np.asarray(conv_by_xla(x, kernel)) + np.arange(16.0), atol=2e-5)
    assert ("stablehlo.convolution" not in jax.jit(layer.apply).lower(params, x).as_text()) == product
    if product:
        usual = jax.grad(lambda p: jnp.sin(conv_by_xla(x, p)).sum())(kernel)
        ours = jax.grad(lambda p: jnp.sin(layer.apply({"params": {"kernel": p, "bias": jnp.zeros(16)}}, x)).sum())
        np.testing.assert_allclose(ours(kernel), usual, atol=1e-4)


@pytest.mark.parametrize("name", ["adm", "dit", "unet"])
def test_float16_is_refused(name):
    network = from_linen(NETWORKS[name](**{**SMALL[name], "dtype": "float16"}))
    with pytest.raises(ValueError, match="dtype = 'float16': it must be float32 or bfloat16"):
        jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)), jnp.zeros(1))


@pytest.mark.parametrize(("name", "level"), [("adm", 3), ("unet", 7)])
def test_attention_at_a_level_that_is_none_is_refused(name, level):
    network = from_linen(NETWORKS[name](**{**SMALL[name], "attention": (1, level)}))
    with pytest.raises(ValueError, match=rf"attention = \(1, {level}\): there is no level {level}, only "):
        jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)), jnp.zeros(1))


def test_features_of_a_network_that_shows_none_are_a_clear_error():
    network = from_linen(NETWORKS["unet"](**SMALL["unet"]))._replace(features=None)
    denoise = make_denoiser(network, I2SB(), PARAMETRISATIONS["x_0"])
    with pytest.raises(UserError, match="this network shows no features"):
        denoise({}, jnp.zeros((1, 8, 8, 3)), jnp.ones(1), features=True)
