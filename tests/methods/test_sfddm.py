"""SFDDM and progressive distillation on Gaussian data, where a denoiser is one number for each time."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from parameters import perturb

from ibmd_jax.bridges import BRIDGES, I2SB
from ibmd_jax.bridges.diffusion import Cosine, Linear
from ibmd_jax.bridges.parametrisations import x_0
from ibmd_jax.bridges.times import uniform_grid
from ibmd_jax.core.types import Batch
from ibmd_jax.methods import progressive, sfddm
from ibmd_jax.methods.base import WEIGHTS
from ibmd_jax.methods.sfddm import drawn_step, steps_of
from ibmd_jax.networks.adapters import from_linen
from ibmd_jax.networks.denoiser import make_denoiser
from ibmd_jax.networks.mlp import MLP
from ibmd_jax.samplers import ancestral, dbim
from ibmd_jax.samplers.dbim import carry_on, estimate_of

BRIDGE, S, CHAIN = Cosine(), 0.5, 1024  # x_0 ~ N(0, S^2)


def gain(t):
    """E[x_0 | x_t] = gain(t) x_t."""
    alpha, sigma = BRIDGE.alpha(t), BRIDGE.sigma(t)
    return alpha * S**2 / (alpha**2 * S**2 + sigma**2)


def linear(params, x_t, t, x_T=None, cond=None):
    """params [N]: a gain for each of the times N/N ... 1/N; an empty one is the teacher, who knows all times."""
    t = jnp.broadcast_to(t, x_t.shape[:1])
    if not params.size:
        return gain(t)[:, None] * x_t
    return params[jnp.rint((1 - t) * params.size).astype(jnp.int32)][:, None] * x_t


def deviation(params, steps):
    """The deviation of what `steps` deterministic steps of a linear denoiser make of N(0, 1)."""
    times = uniform_grid(steps)
    return float(dbim(lambda *a: linear(params, *a), BRIDGE, jax.random.key(0), jnp.ones((1, 1)), times)[0, 0])


TEACHER = jnp.zeros(0)


def batch(key, examples):
    k_0, k_T = jax.random.split(key)
    return Batch(jax.random.normal(k_T, (examples, 1)), S * jax.random.normal(k_0, (examples, 1)))


def train(method, start, steps):
    """The average after so many steps of method on fresh Gaussian data."""

    @jax.jit
    def run(start):
        def body(state, i):
            key = jax.random.fold_in(jax.random.key(1), i)
            state, info = method.step(state, TEACHER, batch(key, 256), jax.random.fold_in(key, 1))
            return state, info.loss

        return jax.lax.scan(body, method.init(start), jnp.arange(steps, dtype=jnp.uint32))

    state, losses = run(start)
    return method.export(state), losses


def optimizer(steps):
    return optax.chain(
        optax.scale_by_rms(eps=1e-20), optax.scale_by_learning_rate(optax.cosine_decay_schedule(0.02, steps))
    )


@pytest.mark.usefixtures("lenient")
@pytest.mark.parametrize("steps", [128, 16, 8, 4, 2])
def test_the_student_of_latents_reaches_the_teachers_marginals_in_any_number_of_steps(steps):
    n, times = 600, uniform_grid(steps)
    settings = {"hidden": "latents", "output_weight": 0.0, "chain": CHAIN // steps, "distance": "l2"}
    method = sfddm(linear, BRIDGE, optimizer(n), times=times, ema_decay=0.98, **settings)
    student, losses = train(method, 0.8 * gain(times[:-1]), n)
    wanted, plain = deviation(TEACHER, CHAIN), deviation(TEACHER, steps)
    np.testing.assert_allclose(wanted, S, rtol=2e-3)
    np.testing.assert_allclose(deviation(student, steps), wanted, rtol=2e-3 if steps <= 16 else 1e-2)
    if steps <= 16:  # which the teacher's own fewer steps do not
        assert abs(plain / wanted - 1) > 5 * abs(deviation(student, steps) / wanted - 1)
        assert losses[-1] < 0.1 * losses[0]


@pytest.mark.usefixtures("lenient")
def test_the_student_of_outputs_is_the_teacher_on_fewer_steps():
    n, times = 600, uniform_grid(4)
    method = sfddm(linear, BRIDGE, optimizer(n), times=times, hidden="none", distance="l1", ema_decay=0.98)
    student, _ = train(method, jnp.zeros(4), n)
    np.testing.assert_allclose(student, gain(times[:-1]), atol=0.01)
    np.testing.assert_allclose(deviation(student, 4), deviation(TEACHER, 4), rtol=0.02)


@pytest.mark.usefixtures("lenient")
def test_three_folds_of_progressive_distillation_reach_the_teacher():
    teacher = gain(uniform_grid(8)[:-1])
    for steps in (4, 2, 1):
        method = progressive(linear, BRIDGE, optimizer(600), times=uniform_grid(steps), ema_decay=0.98)
        method = method._replace(step=lambda s, _, b, k, m=method, t=teacher: m.step(s, t, b, k))
        teacher, _ = train(method, teacher[::2], 600)
        np.testing.assert_allclose(deviation(teacher, steps), deviation(TEACHER, 8), rtol=0.01)
    assert abs(deviation(TEACHER, 1) / deviation(TEACHER, 8) - 1) > 0.5


@pytest.mark.parametrize("times", [uniform_grid(8), jnp.asarray([1.0, 0.9, 0.6, 0.5, 0.1, 0.0])], ids=["even", "any"])
def test_the_students_chain_is_ddpm_on_its_own_alphas(times):
    """beta'_i = 1 - alpha'_bar_i / alpha'_bar_{i-1}, and DDPM's posterior of them, against the bridge's."""
    bridge = Linear()
    bar = np.asarray(bridge.alpha(times), np.float64)[::-1] ** 2
    clean, x_s = jnp.asarray([[0.7]]), jnp.asarray([[-0.4]])
    for i in range(1, len(bar)):
        beta = 1 - bar[i] / bar[i - 1]
        mean = beta * np.sqrt(bar[i - 1]) / (1 - bar[i]) * 0.7
        mean += (1 - bar[i - 1]) * np.sqrt(1 - beta) / (1 - bar[i]) * -0.4
        found = bridge.posterior(clean, x_s, times[-1 - i], times[-i])
        np.testing.assert_allclose(found[0][0, 0], mean, rtol=1e-4)
        np.testing.assert_allclose(found[1] ** 2, beta * (1 - bar[i - 1]) / (1 - bar[i]), rtol=1e-3, atol=1e-7)


def test_steps_are_drawn_from_the_whole_chain_to_its_end():
    times, n = jnp.asarray([1.0, 0.7, 0.2, 0.0]), 3000
    b = batch(jax.random.key(0), n)
    x_s, s, u, _ = drawn_step(BRIDGE, b, times, jax.random.split(jax.random.key(1), n))
    pairs, counts = np.unique(np.stack([s, u], 1), axis=0, return_counts=True)
    np.testing.assert_allclose(pairs, np.stack([times[:-1], times[1:]], 1)[::-1])
    np.testing.assert_allclose(counts / n, 1 / 3, atol=0.04)
    end = np.asarray(s) == 1.0
    assert abs(np.corrcoef(x_s[end, 0], b.x_0[end, 0])[0, 1]) < 0.1  # it starts from the prior
    assert np.corrcoef(x_s[~end, 0], b.x_0[~end, 0])[0, 1] > 0.3


@pytest.mark.parametrize("name", sorted(set(BRIDGES) - {"i2sb_table", "edm"}))
def test_the_estimate_of_a_step_is_the_inverse_of_the_step(name):
    bridge = BRIDGES[name]()
    x_s, clean, x_T, z = jax.random.normal(jax.random.key(0), (4, 5, 2))
    for s in (1.0, 0.6):
        s, t = jnp.full(5, s), jnp.asarray([0.0, 0.1, 0.2, 0.3, 0.4])
        x_t = carry_on(bridge, x_s, clean, x_T, s, t, z)
        np.testing.assert_allclose(estimate_of(bridge, x_s, x_t, x_T, s, t, z), clean, atol=2e-5, rtol=2e-4)


def test_a_whole_chain_is_what_the_sampler_makes(networks):
    """With a mask, too; and with the first estimate given."""
    bridge, denoise, (teacher, _), b = networks
    s, u = jnp.full(6, 0.9), jnp.zeros(6)

    def bound(x_t, t, x_T, cond):
        return denoise(teacher, x_t, t, x_T)

    expected = dbim(bound, bridge, jax.random.key(0), b.x_T, jnp.linspace(0.9, 0.0, 4), mask=b.mask)
    found = steps_of(denoise, bridge, teacher, b.x_T, s, u, b, 3, b.x_T)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    first = denoise(teacher, b.x_T, s, b.x_T)
    np.testing.assert_allclose(steps_of(denoise, bridge, teacher, b.x_T, s, u, b, 3, b.x_T, first), found, atol=1e-5)


def test_progressive_targets_are_those_of_the_paper():
    """x_tilde = (x_u - sigma_u / sigma_s x_s) / (alpha_u - sigma_u / sigma_s alpha_s), appendix G."""
    x_s, zero = jnp.asarray([[0.3], [-1.2]]), jnp.zeros((2, 1))
    s, u = jnp.asarray([0.9, 0.5]), jnp.asarray([0.6, 0.25])
    x_u = steps_of(linear, BRIDGE, TEACHER, x_s, s, u, Batch(zero), 2, zero)
    middle = (s + u) / 2
    x_m = BRIDGE.alpha(middle)[:, None] * linear(TEACHER, x_s, s) + (BRIDGE.sigma(middle) / BRIDGE.sigma(s))[
        :, None
    ] * (x_s - BRIDGE.alpha(s)[:, None] * linear(TEACHER, x_s, s))
    expected = BRIDGE.alpha(u)[:, None] * linear(TEACHER, x_m, middle) + (BRIDGE.sigma(u) / BRIDGE.sigma(middle))[
        :, None
    ] * (x_m - BRIDGE.alpha(middle)[:, None] * linear(TEACHER, x_m, middle))
    np.testing.assert_allclose(x_u, expected, atol=1e-6)
    ratio = (BRIDGE.sigma(u) / BRIDGE.sigma(s))[:, None]
    x_tilde = (x_u - ratio * x_s) / (BRIDGE.alpha(u)[:, None] - ratio * BRIDGE.alpha(s)[:, None])
    np.testing.assert_allclose(estimate_of(BRIDGE, x_s, x_u, zero, s, u, zero), x_tilde, atol=1e-5)


def test_truncated_snr():
    t = jnp.asarray([0.1, 0.49, 0.9])
    snr = np.square(BRIDGE.alpha(t) / BRIDGE.sigma(t))
    np.testing.assert_allclose(WEIGHTS["truncated_snr"](BRIDGE, t), np.maximum(snr, 1), rtol=1e-6)
    assert snr[1] > 1 > snr[2]


@pytest.fixture(scope="module")
def networks():
    """An MLP on a bridge between images, its two parameter trees, and a batch with a mask."""
    bridge, network = I2SB(), from_linen(MLP(out_channels=2, width=16, depth=2))
    denoise = make_denoiser(network, bridge, x_0)
    x = jax.random.normal(jax.random.key(0), (6, 4, 4, 2))
    init = jax.jit(network.init)
    trees = [perturb(init(jax.random.key(i), x[:1], jnp.zeros(1)), seed=7 + i) for i in range(2)]
    mask = jnp.zeros((6, 4, 4, 1), bool).at[:, 1:3].set(True)
    return bridge, denoise, trees, Batch(x, jax.random.normal(jax.random.key(3), x.shape), mask)


@pytest.mark.parametrize("hidden", ["none", "features", "latents"])
@pytest.mark.parametrize("distance", ["l1", "l2"])
def test_the_two_terms_by_hand(networks, hidden, distance):
    bridge, denoise, (student, teacher), b = networks
    times, key = jnp.asarray([1.0, 0.5, 0.0]), jax.random.key(5)
    settings = {"hidden": hidden, "output_weight": 0.5, "hidden_weight": 2.0, "chain": 3, "distance": distance}
    m = sfddm(denoise, bridge, optax.sgd(0.1), times=times, weight=WEIGHTS["ten_to_2"], **settings)
    _, info = m.step(m.init(student), teacher, b, key)

    x_s, s, u, z = drawn_step(bridge, b, times, jax.random.split(key, 6))
    (mine, h), (its, h_teacher) = (denoise(p, x_s, s, b.x_T, features=True) for p in (student, teacher))
    d, inside = {"l1": np.abs, "l2": np.square}[distance], np.broadcast_to(b.mask, b.x_T.shape)
    scale = 10.0 ** (1 - np.asarray(s)).reshape(-1, 1, 1, 1)
    np.testing.assert_allclose(info.output, d(scale * (mine - its))[inside].mean(), rtol=1e-5)
    x = x_s
    for j in range(3):
        t, next_t = s + (u - s) * (j / 3), s + (u - s) * ((j + 1) / 3)
        x_0 = jnp.where(b.mask, denoise(teacher, x, t, b.x_T), b.x_T)
        x = carry_on(bridge, x, x_0, b.x_T, t, next_t, z)
    latent = d(carry_on(bridge, x_s, mine, b.x_T, s, u, z) - x)[inside].mean()
    expected = {"none": 0.0, "features": d(h - h_teacher).mean(), "latents": latent}[hidden]
    np.testing.assert_allclose(info.hidden, expected, rtol=1e-4)
    np.testing.assert_allclose(info.loss, 0.5 * info.output + 2 * info.hidden, rtol=1e-5)


def test_a_student_that_is_the_teacher_has_nothing_to_learn_from_features(networks):
    """So with the terms of the authors' code its steps are the teacher's own, whatever their number."""
    bridge, denoise, (_, teacher), b = networks
    m = sfddm(denoise, bridge, optax.sgd(0.1), times=uniform_grid(2))
    _, info = m.step(m.init(teacher), teacher, b, jax.random.key(5))
    assert (float(info.loss), float(info.grad_norm)) == (0, 0)
    m = sfddm(denoise, bridge, optax.sgd(0.1), times=uniform_grid(2), hidden="latents")
    _, info = m.step(m.init(teacher), teacher, b, jax.random.key(5))
    assert info.hidden > 0.01


def test_a_fold_by_hand(networks):
    bridge, denoise, (student, teacher), b = networks
    times, key = jnp.asarray([1.0, 0.5, 0.0]), jax.random.key(5)
    m = progressive(denoise, bridge, optax.sgd(0.1), times=times, weight=WEIGHTS["ten_to_2"])
    _, info = m.step(m.init(student), teacher, b, key)
    x_s, s, u, z = drawn_step(bridge, b, times, jax.random.split(key, 6))
    x_u = steps_of(denoise, bridge, teacher, x_s, s, u, b, 2, z)
    error = denoise(student, x_s, s, b.x_T) - estimate_of(bridge, x_s, x_u, b.x_T, s, u, z)
    weighted = 10.0 ** (2 * (1 - np.asarray(s))).reshape(-1, 1, 1, 1) * np.square(error)
    np.testing.assert_allclose(info.loss, weighted[np.broadcast_to(b.mask, b.x_T.shape)].mean(), rtol=1e-5)


@pytest.mark.parametrize(("make", "settings"), [(sfddm, {"hidden": "latents"}), (sfddm, {}), (progressive, {})])
def test_every_evaluation_is_told_the_label(networks, make, settings):
    bridge, denoise, (student, teacher), b = networks
    told = []

    def conditional(params, x_t, t, x_T=None, cond=None, **more):
        told.append(cond is not None)
        return denoise(params, x_t, t, x_T, **more)

    m = make(conditional, bridge, optax.sgd(0.1), times=uniform_grid(2), **settings)
    labelled = b._replace(cond=jnp.arange(6, dtype=jnp.int32))
    m.step(m.init(student), teacher, labelled, jax.random.key(5))
    m.sample(student, jax.random.key(6), labelled)
    assert all(told)
    assert len(told) >= 3


@pytest.mark.parametrize("make", [sfddm, progressive])
def test_microbatches_change_nothing(networks, make):
    bridge, denoise, (student, teacher), b = networks
    found = []
    for accumulate in (1, 3):
        m = make(denoise, bridge, optax.sgd(0.1), times=uniform_grid(4), accumulate=accumulate)
        state, info = jax.jit(m.step)(m.init(student), teacher, b, jax.random.key(5))
        found.append((state, info))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), *found)


@pytest.mark.parametrize("sampler", [ancestral, dbim])
def test_students_run_their_own_chain(networks, sampler):
    bridge, denoise, (student, _), b = networks
    times = jnp.asarray([1.0, 0.3, 0.0])
    m = sfddm(denoise, bridge, optax.sgd(0.1), times=times, sampler=sampler)
    found = m.sample(student, jax.random.key(2), b)
    expected = sampler(
        lambda x, t, x_T, cond: denoise(student, x, t, x_T), bridge, jax.random.key(2), b.x_T, times, mask=b.mask
    )
    np.testing.assert_array_equal(found, expected)
    with pytest.raises(ValueError, match="trained for 2 steps, not 3"):
        m.sample(student, jax.random.key(2), b, steps=3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden": "layers"}, "hidden = 'layers'"),
        ({"distance": "l3"}, "distance = 'l3'"),
        ({"chain": 0}, "chain = 0"),
        ({"chain": 2.5}, "chain = 2.5"),
        ({"hidden": "none", "output_weight": 0.0}, "nothing would be learnt"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        sfddm(linear, BRIDGE, optax.sgd(0.1), times=uniform_grid(2), **settings)


@pytest.mark.parametrize("make", [sfddm, progressive])
def test_clean_images_are_needed(make):
    m = make(linear, BRIDGE, optax.sgd(0.1), times=uniform_grid(2))
    with pytest.raises(ValueError, match="needs clean images"):
        m.step(m.init(jnp.ones(2)), TEACHER, Batch(jnp.ones((2, 1))), jax.random.key(0))
