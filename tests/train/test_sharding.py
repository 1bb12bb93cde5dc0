"""Four CPU devices compute what one computes, with the state split over them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh
from parameters import perturb

from ibmd_jax.bridges import I2SB
from ibmd_jax.bridges.parametrisations import eps
from ibmd_jax.bridges.times import uniform_grid
from ibmd_jax.core.errors import UserError
from ibmd_jax.core.types import Batch
from ibmd_jax.methods import dibregman, ibmd, on_features, sfddm
from ibmd_jax.networks.adapters import from_linen
from ibmd_jax.networks.denoiser import init_denoiser, make_denoiser
from ibmd_jax.networks.head import Head
from ibmd_jax.networks.unet import UNet
from ibmd_jax.train.checkpoint import Checkpoints
from ibmd_jax.train.sharding import abstract_state, batch_sharding, check_divisible, make_mesh, state_sharding


def mesh_of(n):
    return Mesh(np.array(jax.devices()[:n]), ("data",), axis_types=(AxisType.Auto,))


def test_large_leaves_are_split_on_their_largest_divisible_axis():
    tree = {"big": jnp.zeros((3, 8, 16)), "odd": jnp.zeros((3, 5, 99)), "small": jnp.zeros(4)}
    specs = jax.tree.map(lambda s: tuple(s.spec), state_sharding(mesh_of(4), tree, min_size=64))
    assert specs == {"big": (None, None, "data"), "odd": (), "small": ()}
    alone = state_sharding(mesh_of(1), tree, min_size=1)
    assert all(not tuple(s.spec) for s in jax.tree.leaves(alone))


def the_method(name, denoise, bridge):
    if name == "sfddm":
        m = sfddm(denoise, bridge, optax.sgd(0.1), times=uniform_grid(3), hidden="latents", distance="l2")
        return m._replace(init=lambda start: m.init(start[0]))
    rates = optax.sgd(0.1), optax.sgd(0.1)
    if name == "ibmd":
        return ibmd(denoise, bridge, *rates, auxiliary_updates=2)
    head = Head(8)
    judge = on_features(
        denoise,
        lambda: head.init(jax.random.key(3), jnp.zeros((1, 4, 4, 8)))["params"],
        lambda params, h: head.apply({"params": params}, h),
        own=True,
    )
    return dibregman(denoise, bridge, *rates, judge, auxiliary_updates=1)


@pytest.mark.parametrize("name", ["ibmd", "sfddm", "dibregman"])
def test_a_step_on_four_devices_with_split_state_is_the_step_on_one(name):
    network, bridge = from_linen(UNet(channels=(8,), attention=(), groups=4)), I2SB()
    denoise = make_denoiser(network, bridge, eps)
    m = the_method(name, denoise, bridge)
    teacher = perturb(init_denoiser(network, jax.random.key(0), (8, 8, 3)))
    x_T = jax.random.normal(jax.random.key(2), (8 * m.batches, 8, 8, 3))

    def run(n):
        mesh = mesh_of(n)

        def start():
            return m.init((jax.tree.map(lambda v: 0.9 * v, teacher), jax.tree.map(jnp.array, teacher)))

        sharding = jax.tree.map(lambda x: x.sharding, abstract_state(mesh, 32, start))
        state = jax.jit(start, out_shardings=sharding)()
        update = jax.jit(m.step, donate_argnums=0, out_shardings=(sharding, None))
        batch = jax.device_put(Batch(x_T, x_T[::-1] / 2), batch_sharding(mesh))
        frozen = jax.device_put(teacher, sharding.params if name == "sfddm" else sharding.student)
        with jax.set_mesh(mesh):
            for i in range(2):
                state, info = update(state, frozen, batch, jax.random.key(i))
        return state, info

    (one, info_one), (four, info_four) = run(1), run(4)
    split = [x for x in jax.tree.leaves(four) if not x.sharding.is_fully_replicated]
    assert len(split) > 20
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4), info_one, info_four)
    for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(four), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5)


def test_a_checkpoint_goes_from_four_devices_to_two_to_one(tmp_path):
    def init():
        return {"split": jnp.arange(64.0).reshape(8, 8), "whole": jnp.arange(3.0)}

    def abstract(n):
        return abstract_state(mesh_of(n), 16, init)

    state = jax.jit(init, out_shardings=jax.tree.map(lambda x: x.sharding, abstract(4)))()
    for step, n in enumerate((4, 2, 1)):
        checkpoints = Checkpoints(tmp_path, keep=3)
        if step:
            found, state, _ = checkpoints.restore(abstract(n))
            assert found == step - 1
        assert [len(x.sharding.device_set) for x in state.values()] == [n, n]
        assert state["split"].sharding.is_fully_replicated == (n == 1)
        checkpoints.save(step, state, {})
        checkpoints.close()
    jax.tree.map(np.testing.assert_array_equal, state, init())


def test_the_mesh_holds_every_device():
    assert make_mesh().size == jax.device_count() == 4


def test_the_devices_of_a_process_are_together_and_in_its_place():
    @dataclasses.dataclass(frozen=True)
    class Device:
        process_index: int
        id: int

    ring = [Device(*d) for d in ((0, 0), (0, 1), (1, 2), (1, 3), (1, 7), (1, 6), (0, 5), (0, 4))]
    assert [d.id for d in make_mesh(ring).devices] == [0, 1, 4, 5, 2, 3, 6, 7]


def test_a_batch_that_does_not_divide_is_refused():
    check_divisible("config.teacher.batch_size", 8, make_mesh())
    with pytest.raises(UserError, match=r"= 8 does not divide over 4 devices in 3 parts \(accumulate\): use 12$"):
        check_divisible("config.teacher.batch_size", 8, make_mesh(), 3)
    with pytest.raises(UserError, match=r"config.teacher.batch_size = 6 .* 4 devices: use 4 or 8"):
        check_divisible("config.teacher.batch_size", 6, make_mesh())
