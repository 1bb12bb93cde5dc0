import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

from ibmd_jax.core.errors import UserError
from ibmd_jax.core.types import Batch
from ibmd_jax.metrics import PIXEL_METRICS
from ibmd_jax.metrics.pixels import psnr
from ibmd_jax.train.evaluate import Row, Sampler, diversity, evaluate, other_inputs, restore, split, table
from ibmd_jax.train.optim import OPTIMIZERS, make_optimizer
from ibmd_jax.train.pictures import save_grid

TRUTH = np.random.default_rng(0).uniform(-1, 1, (10, 16, 16, 3)).astype(np.float32)
TEST = Batch(TRUTH * 0, TRUTH)


def features(x):
    return x.reshape(len(x), -1)[:, :6]


def test_split_fills_the_last_batch_up_and_evaluate_leaves_the_filling_out():
    waiting = split(TEST, 4)
    before = len(jax.live_arrays())
    parts = [next(waiting)]
    assert len(jax.live_arrays()) == before + 2  # x_0 and x_T of one part
    parts += waiting
    assert [p.x_0.shape[0] for p in parts] == [4, 4, 4]
    np.testing.assert_array_equal(parts[2].x_0[2:], TRUTH[:2])
    assert len(parts[0].x_0.sharding.device_set) == jax.device_count() == 4
    assert not parts[0].x_0.sharding.is_fully_replicated


def test_evaluate_measures_each_sampler():
    samplers = [
        Sampler("perfect", 1, jax.jit(lambda params, key, b: b.x_0 + params), jnp.float32(0)),
        Sampler("zero", 5, jax.jit(lambda params, key, b: b.x_T + params), jnp.float32(0)),
    ]
    seen = []
    rows, images = evaluate(samplers, TEST, features, batch_size=4, key=jax.random.key(0), report=seen.append)
    assert [(r.label, r.nfe) for r in rows] == [("perfect", 1), ("zero", 5)]
    assert seen == rows
    np.testing.assert_allclose(rows[0].metrics["fid"], 0, atol=1e-6)
    np.testing.assert_allclose(rows[0].metrics["ssim"], 1, atol=1e-5)
    assert rows[1].metrics["fid"] > 1
    assert rows[1].images_per_second > 0
    np.testing.assert_array_equal(images["perfect 1"], TRUTH)
    assert [r.metrics["diversity"] for r in rows] == [0, 0]


def test_no_more_than_a_part_is_on_the_devices_and_of_many_images_a_few_are_returned(monkeypatch):
    sizes, live = [], []

    def counted(x, y):
        sizes.append(len(x))
        return psnr(x, y)

    def parts():
        for part in split(TEST, 4):
            live.append(len(jax.live_arrays()))
            yield part

    monkeypatch.setitem(PIXEL_METRICS, "psnr", counted)
    zero = Sampler("zero", 1, jax.jit(lambda params, key, b: b.x_T + params), jnp.float32(0))
    few = np.array([1, 9])
    (row,), images = evaluate([zero], TEST, None, batch_size=4, key=jax.random.key(0), shown=few)
    assert sizes == [4, 4, 2]
    np.testing.assert_allclose(row.metrics["psnr"], np.mean(psnr(TEST.x_T, TRUTH)), rtol=1e-6)
    np.testing.assert_array_equal(images["zero 1"], TEST.x_T[few])
    monkeypatch.setattr(jax, "process_count", lambda: 2)  # once
    restore(zero, parts, 10, jax.random.key(0))
    assert len(live) == 3
    assert live[2] == live[1]  # nothing is left of the first part


def test_several_processes_sample_equally_often(monkeypatch):
    """Each would measure another time, and a program with collectives waits for all of them."""
    calls = []

    def sample(params, key, batch):
        jax.debug.callback(lambda: calls.append(0), ordered=False)
        return batch.x_0

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    quick = Sampler("quick", 1, jax.jit(sample), jnp.float32(0))
    restore(quick, lambda: [Batch(TRUTH, TRUTH)], 10, jax.random.key(0))
    jax.effects_barrier()
    assert len(calls) == 1


def test_diversity_is_the_deviation_over_draws_of_the_same_input():
    traced = []

    def sample(params, key, batch):
        traced.append(batch.x_0.shape)
        return batch.x_0 + params * jax.random.normal(key, batch.x_0.shape)

    rows, _ = evaluate(
        [Sampler("noisy", 1, jax.jit(sample), jnp.float32(0.3))], TEST, None, batch_size=4, key=jax.random.key(0)
    )
    np.testing.assert_allclose(rows[0].metrics["diversity"], 0.3, rtol=0.02)
    assert traced == [(4, 16, 16, 3)]  # one program for the images, the time and the draws
    np.testing.assert_allclose(diversity([np.zeros((2, 1, 1, 1)), np.full((2, 1, 1, 1), 2.0)]), 2**0.5)


def test_other_inputs_have_other_noise_where_there_is_noise_and_nowhere_else():
    mask = np.zeros((10, 16, 16, 1), bool)
    mask[:, 4:9] = True
    hole = Batch(np.where(mask, np.float32(0.5), TRUTH), TRUTH, mask)
    drawn = [other_inputs(hole, i, False).x_T for i in range(3)]
    np.testing.assert_array_equal(drawn[0], hole.x_T)
    assert (drawn[1] != drawn[2])[:, 4:9].all()
    np.testing.assert_allclose(drawn[1][:, 4:9].std(), 1, rtol=0.05)
    np.testing.assert_array_equal(np.where(mask, 0, drawn[1]), np.where(mask, 0, TRUTH))
    grey = Batch(np.where(mask, np.float32(0), TRUTH), TRUTH, mask)
    np.testing.assert_array_equal(other_inputs(grey, 1, False).x_T, grey.x_T)
    np.testing.assert_array_equal(other_inputs(TEST, 1, False).x_T, TEST.x_T)
    mask[5:] = True  # of another task, in a mixture with an inpainting: no hole, no noise
    mixed = other_inputs(hole._replace(mask=mask), 1, False).x_T
    np.testing.assert_array_equal(mixed[:5], drawn[1][:5])
    np.testing.assert_array_equal(mixed[5:], hole.x_T[5:])
    np.testing.assert_array_equal(other_inputs(Batch(TRUTH), 1, True).x_T, TRUTH[np.r_[9, :9]])


def test_table_has_a_line_for_each_row():
    lines = table([Row("student", 1, {"fid": 1.5, "kid": 0.25}, 99.0)]).splitlines()
    assert lines[0].split() == ["model", "NFE", "FID", "KID", "images/s"]
    assert lines[1].split() == ["student", "1", "1.500", "0.250", "99.0"]


def test_grid_places_the_images(tmp_path):
    red = np.broadcast_to(np.float32([1, -1, -1]), (2, 8, 8, 3))
    save_grid(tmp_path / "a" / "grid.png", {"red": red, "grey": np.zeros((2, 8, 8, 1), np.float32)})
    image = np.asarray(Image.open(tmp_path / "a" / "grid.png"))
    assert image[60, 40].tolist() == [255, 0, 0]
    assert image[60, 150].tolist() == [128, 128, 128]
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["grid.png"]


def settings(**changes):
    base = {"name": "adam", "learning_rate": 0.1, "steps": 10, "b1": 0.0, "b2": 0.9, "clip": 0, "warmup": 0}
    return {**base, "decay": False, **changes}


@pytest.mark.usefixtures("lenient")
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimisers_minimise(name):
    optimizer = make_optimizer(**settings(name=name, steps=200))
    params = {"w": jnp.float32(3.0)}
    state = optimizer.init(params)
    for _ in range(200):
        updates, state = optimizer.update(jax.grad(lambda p: p["w"] ** 2)(params), state, params)
        params = optax.apply_updates(params, updates)
    assert abs(params["w"]) < 0.2


@pytest.mark.usefixtures("lenient")
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize(
    ("gradients", "changes", "expected"),
    [
        ((1.0, -1.0), {}, 0.1),  # with b1 = 0 the last gradient alone has a say in the direction
        ((1.0, -1.0), {"b1": 0.9}, 0.1 * 0.1 / 1.9),  # (1 - b1)² / (1 - b1²), by hand
        ((10.0, 1.0), {"clip": 1.0}, -0.1),  # a first gradient that is clipped is no larger than the second
    ],
)
def test_an_optimiser_has_the_moments_and_the_clip_that_are_asked_for(name, gradients, changes, expected):
    optimizer = make_optimizer(**settings(name=name, **changes))
    w = jnp.float32(0)
    state = optimizer.init(w)
    for gradient in gradients:
        update, state = optimizer.update(jnp.float32(gradient), state, w)
    np.testing.assert_allclose(update, expected, rtol=1e-4)


@pytest.mark.usefixtures("lenient")
def test_warm_up_then_cosine():
    optimizer = make_optimizer(**settings(warmup=4, decay=True, steps=12))
    state, sizes = optimizer.init(jnp.float32(0)), []
    for _ in range(13):
        update, state = optimizer.update(jnp.float32(1), state, jnp.float32(0))
        sizes.append(-float(update))
    np.testing.assert_allclose(sizes[:5], [0, 0.025, 0.05, 0.075, 0.1], atol=1e-6)
    np.testing.assert_allclose(sizes[8], 0.05, atol=1e-6)
    np.testing.assert_allclose(sizes[12], 0, atol=1e-6)


@pytest.mark.usefixtures("lenient")
def test_warm_up_alone():
    optimizer = make_optimizer(**settings(warmup=4, steps=12))
    state, sizes = optimizer.init(jnp.float32(0)), []
    for _ in range(7):
        update, state = optimizer.update(jnp.float32(1), state, jnp.float32(0))
        sizes.append(-float(update))
    np.testing.assert_allclose(sizes, [0, 0.025, 0.05, 0.075, 0.1, 0.1, 0.1], atol=1e-6)


@pytest.mark.usefixtures("lenient")
def test_weights_decay_where_that_is_asked_for():
    for decay in (0.0, 0.5):
        optimizer = make_optimizer(**settings(name="adamw", weight_decay=decay))
        w = jnp.float32(2.0)
        update, _ = optimizer.update(jnp.float32(0), optimizer.init(w), w)
        np.testing.assert_allclose(update, -0.1 * decay * w, rtol=1e-6)
    with pytest.raises(ValueError, match=r"weight_decay = 0.5 is for adamw, not adam"):
        make_optimizer(**settings(weight_decay=0.5))


@pytest.mark.parametrize(
    ("field", "value"),
    [("learning_rate", -1.0), ("learning_rate", math.nan), ("b1", 1.0), ("b2", -0.1), ("clip", -1.0), ("warmup", -1)],
)
def test_numbers_that_no_optimiser_has_are_refused(field, value):
    numbers = {"learning_rate": 1e-3, "b1": 0.9, "b2": 0.999, "clip": 0.0, "warmup": 0, field: value}
    with pytest.raises(ValueError, match=f"{field} = .*: it must be"):
        make_optimizer("adam", steps=1, decay=False, **numbers)


def test_unknown_optimiser():
    with pytest.raises(UserError, match=r"unknown optimizer 'adm'.*Did you mean 'adam'"):
        make_optimizer(**settings(name="adm"))
