"""Bridge matching: the loss in closed form, and a teacher that learns a Gaussian coupling's denoiser."""

import gaussian
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ibmd_jax.bridges import DDBMVP, I2SB, Brownian, Flow, diffusion
from ibmd_jax.bridges.parametrisations import eps, native_weight
from ibmd_jax.bridges.times import TIME_SAMPLERS
from ibmd_jax.core.types import Batch
from ibmd_jax.methods import ibmd, teacher
from ibmd_jax.methods.base import WEIGHTS, split_batch
from ibmd_jax.methods.teacher import bridge_matching_loss

BRIDGE, COUPLING = I2SB(), gaussian.TWO_D
DENOISE = gaussian.make_denoise(BRIDGE, COUPLING.S)


def draw(key, n):
    k = jax.random.split(key, 2)
    x_T = gaussian.draw_x_T(COUPLING, k[0], n)
    return Batch(x_T, DENOISE(COUPLING.params, x_T, 1.0, z=jax.random.normal(k[1], x_T.shape)))


def test_the_loss_is_the_exact_error_of_the_denoiser():
    wrong = {"M": jnp.eye(2) * 0.3, "R": jnp.eye(2)}
    for t in (0.1, 0.6):
        loss = bridge_matching_loss(
            DENOISE, BRIDGE, wrong, draw(jax.random.key(0), 400_000), jnp.full((400_000,), t), jax.random.key(1)
        )
        expected = gaussian.exact_error(BRIDGE, wrong, COUPLING.params, jnp.asarray(COUPLING.S), jnp.float32(t))
        np.testing.assert_allclose(loss.mean(), expected, rtol=0.01)


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_weight_multiplies_the_loss_of_each_example(name):
    t = jnp.array([0.1, 0.5, 1.0])
    batch = draw(jax.random.key(0), 3)
    plain, weighted = (
        bridge_matching_loss(DENOISE, BRIDGE, {"M": jnp.eye(2), "R": jnp.eye(2)}, batch, t, jax.random.key(1), w)
        for w in (WEIGHTS["one"], WEIGHTS[name])
    )
    np.testing.assert_allclose(weighted, plain * WEIGHTS[name](BRIDGE, t), rtol=1e-6)


def test_the_weights_are_what_their_names_say():
    t = jnp.array([0.25, 1.0])
    np.testing.assert_allclose(WEIGHTS["one"](BRIDGE, t), [1, 1])
    np.testing.assert_allclose(WEIGHTS["ten_to_2"](BRIDGE, t), [10**1.5, 1], rtol=1e-6)
    np.testing.assert_allclose(native_weight(eps)(BRIDGE, t), 1 / BRIDGE.rho(t) ** 2, rtol=1e-6)


@pytest.mark.usefixtures("lenient")
def test_a_teacher_learns_the_coupling_and_samples_from_it():
    steps = 600
    m = teacher(DENOISE, BRIDGE, optax.adam(optax.cosine_decay_schedule(3e-2, steps)), ema_decay=0.99)

    @jax.jit
    def train(state):
        def body(state, i):
            return m.step(state, None, draw(jax.random.fold_in(jax.random.key(0), i), 512), jax.random.key(i))

        return jax.lax.scan(body, state, jnp.arange(steps))

    state, info = train(m.init({"M": jnp.zeros((2, 2)), "R": jnp.eye(2)}))
    found = m.export(state)
    t = jnp.linspace(0.1, 1.0, 7)
    for u in t:
        K, expected = (gaussian.gain(BRIDGE, p, jnp.asarray(COUPLING.S), u)[0] for p in (found, COUPLING.params))
        np.testing.assert_allclose(K, expected, atol=0.03)
    assert info.loss[-50:].mean() < info.loss[:10].mean()

    x_T = gaussian.draw_x_T(COUPLING, jax.random.key(5), 50_000)
    x_0 = m.sample(COUPLING.params, jax.random.key(6), Batch(x_T), steps=50)
    V = gaussian.moments(COUPLING.params, jnp.asarray(COUPLING.S))[1]
    np.testing.assert_allclose(np.cov(x_0.T), V, atol=0.03)


def test_split_batch_keeps_every_example_once():
    parts = split_batch(Batch(jnp.arange(12).reshape(12, 1)), 3)
    assert parts.x_T.shape == (3, 4, 1)
    assert sorted(np.ravel(parts.x_T).tolist()) == list(range(12))
    assert parts.x_0 is None


@pytest.mark.usefixtures("lenient")
def test_microbatches_change_nothing():
    """The gradient of plain descent: the same in one part, two and eight."""
    found = []
    for accumulate in (1, 2, 8):
        m = teacher(DENOISE, BRIDGE, optax.sgd(0.1), accumulate=accumulate)
        state = m.init({"M": jnp.zeros((2, 2)), "R": jnp.eye(2)})
        found.append(jax.jit(m.step)(state, None, draw(jax.random.key(1), 64), jax.random.key(0)))
    for other in found[1:]:
        for a, b in zip(*(jax.tree.leaves(x) for x in (found[0], other)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert found[0][1].grad_norm > 0.1


def test_training_has_its_weight_and_its_first_time():
    asked = []

    def sampler(key, examples, t_min, T):
        asked.append((t_min, T))
        return jnp.linspace(t_min, T, examples)

    def loss(**settings):
        m = teacher(DENOISE, BRIDGE, optax.sgd(0.0), t_min=0.4, time_sampler=sampler, **settings)
        start = {"M": jnp.zeros((2, 2)), "R": jnp.eye(2)}
        return m.step(m.init(start), None, draw(jax.random.key(1), 64), jax.random.key(0))[1].loss

    np.testing.assert_allclose(loss(weight=lambda bridge, t: jnp.full_like(t, 2.0)), 2 * loss(), rtol=1e-6)
    assert set(asked) == {(0.4, 1.0)}


def test_dropout_gets_a_key_of_its_own_in_training_alone():
    keys = []

    def denoise(params, x_t, t, x_T=None, cond=None, z=None, key=None):
        keys.append(key)
        return x_t * params

    batch = draw(jax.random.key(0), 4)
    t, key = jnp.full((4,), 0.5), jax.random.key(1)
    for dropout in (True, False):
        bridge_matching_loss(denoise, BRIDGE, jnp.float32(1), batch, t, key, dropout=dropout)
    assert keys[1] is None
    assert (jax.random.key_data(keys[0]) != jax.random.key_data(key)).any()
    keys.clear()
    settings = {"auxiliary_updates": 2, "dropout": True}
    m = ibmd(denoise, BRIDGE, optax.sgd(0.1), optax.sgd(0.1), **settings)
    m.step(m.init((jnp.float32(1), jnp.float32(1))), jnp.float32(1), Batch(jnp.ones((12, 2))), key)
    assert sum(k is not None for k in keys) == 1  # the auxiliary's update, traced once; no other pass drops anything
    assert len(keys) == 5


@pytest.mark.usefixtures("lenient")
def test_at_the_end_of_time_it_is_regression_on_x_T():
    """Trained at t = T alone and sampled in one step: E[x_0 | x_T] = M x_T, whatever the network would be before T."""
    coupling, steps = gaussian.ONE_D, 300

    def denoise(params, x_t, t, x_T=None, cond=None):
        return params * x_t + 100.0 * (jnp.broadcast_to(t, x_t.shape[:1])[:, None] < 1).astype(x_t.dtype)

    m = teacher(denoise, I2SB(), optax.adam(0.02), time_sampler=TIME_SAMPLERS["end"])

    @jax.jit
    def train(state):
        def body(state, i):
            key = jax.random.fold_in(jax.random.key(0), i)
            x_T = gaussian.draw_x_T(coupling, key, 512)
            noise = jax.random.normal(jax.random.fold_in(key, 1), x_T.shape)
            return m.step(state, None, Batch(x_T, x_T @ coupling.M.T + noise @ coupling.R.T), key)[0], None

        return jax.lax.scan(body, state, jnp.arange(steps))[0]

    found = m.export(train(m.init(jnp.float32(0))))
    np.testing.assert_allclose(found, coupling.M[0, 0], atol=0.03)
    x_T = jnp.ones((4, 1))
    np.testing.assert_allclose(m.sample(found, jax.random.key(0), Batch(x_T), steps=1), found * x_T, rtol=1e-6)


@pytest.mark.parametrize("bridge", [Brownian(0.5), I2SB(), DDBMVP()], ids=repr)
def test_the_weight_g2_turns_errors_of_x_0_into_those_of_the_drift(bridge):
    t, x_t = jnp.array([0.2, 0.7]), jnp.zeros((2, 1))
    first, second = jnp.array([[0.3], [-1.0]]), jnp.array([[0.8], [0.5]])
    drifts = bridge.score(first, x_t, t) - bridge.score(second, x_t, t)
    expected = bridge.f_and_g2(t)[1] * jnp.square(drifts)[:, 0]
    np.testing.assert_allclose(WEIGHTS["g2"](bridge, t) * jnp.square(first - second)[:, 0], expected, rtol=1e-5)
    if isinstance(bridge, Brownian):
        np.testing.assert_allclose(WEIGHTS["g2"](bridge, t), 1 / (0.5 * t**2), rtol=1e-5)


@pytest.mark.parametrize(
    ("bridge", "expected"), [(Flow(), 0), (diffusion.Cosine(), 0), (diffusion.Sigmoid(), 0.3), (Brownian(0.5), 2)]
)
def test_the_weight_g2_has_its_limit_at_T(bridge, expected):
    """2 alpha (alpha sigma' - alpha' sigma) / sigma^3, finite where alpha_T = 0 and g^2 is not."""
    np.testing.assert_allclose(WEIGHTS["g2"](bridge, jnp.ones(1)), expected, atol=0.02)
