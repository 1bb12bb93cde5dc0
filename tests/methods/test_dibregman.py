"""Di-Bregman on one-dimensional Gaussians, whose scores and ratios are known, and on a Gaussian bridge."""

import functools

import gaussian
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from parameters import perturb

from ibmd_jax.bridges import Brownian
from ibmd_jax.bridges.diffusion import Cosine
from ibmd_jax.bridges.parametrisations import x_0
from ibmd_jax.core.streams import normal, stream
from ibmd_jax.core.types import Batch
from ibmd_jax.methods.dibregman import DIVERGENCES, Classifier, dibregman, on_features, power
from ibmd_jax.networks.adapters import from_linen
from ibmd_jax.networks.denoiser import make_denoiser
from ibmd_jax.networks.generator import told_earlier
from ibmd_jax.networks.head import Head
from ibmd_jax.networks.mlp import MLP

BRIDGE = Cosine()
TEACHER = {"m": jnp.float32(0.5), "s": jnp.float32(0.4)}
STUDENT = {"m": jnp.float32(-0.3), "s": jnp.float32(0.7)}


def denoise(params, x_t, t, x_T=None, cond=None, z=None):
    """The posterior mean of N(m, s^2) data; with z a sample of them: G(z) = m + s z."""
    if z is not None:
        return params["m"] + params["s"] * z
    t = jnp.broadcast_to(jnp.asarray(t, x_t.dtype), x_t.shape[:1])
    alpha, sigma = BRIDGE.alpha(t)[:, None], BRIDGE.sigma(t)[:, None]
    part = alpha * jnp.square(params["s"]) / (jnp.square(alpha * params["s"]) + jnp.square(sigma))
    return params["m"] + part * (x_t - alpha * params["m"])


def log_ratio(x_t, t, p=TEACHER, q=STUDENT):
    """log p / q of noised data."""

    def log_normal(params):
        alpha, sigma = BRIDGE.alpha(t)[:, None], BRIDGE.sigma(t)[:, None]
        variance = jnp.square(alpha * params["s"]) + jnp.square(sigma)
        return -jnp.square(x_t - alpha * params["m"]) / (2 * variance) - jnp.log(variance) / 2

    return (log_normal(p) - log_normal(q))[:, 0]


def knowing(logit):
    """A classifier without parameters."""
    return Classifier(lambda phi: {}, lambda params, phi, x_t, t, batch: logit(x_t, t))


ANALYTIC, BLIND = knowing(log_ratio), knowing(lambda x_t, t: 0 * x_t[:, 0])
PLAIN = {"normalise": False, "logit_clip": 0.0, "ratio_clip": (0.0, float("inf"))}
PLAIN = {**PLAIN, "ratio_mean": False, "weight_mean": False, "noise_channels": 1, "auxiliary_updates": 1}


def method(classifier=ANALYTIC, rates=(1.0, 0.0), **settings):
    sgd = (optax.sgd(rate) for rate in rates)
    return dibregman(denoise, BRIDGE, *sgd, classifier, **{**PLAIN, **settings})


def images(key, params, examples):
    return Batch(jnp.zeros((examples, 1)), params["m"] + params["s"] * jax.random.normal(key, (examples, 1)))


def direction(m, key=0, student=STUDENT, auxiliary=None, examples=512):
    """What one update of the student alone subtracts from its parameters, and the step's Info."""
    state = m.init((student, auxiliary or student))
    state = state._replace(ratio_mean=jnp.arange(1.0, 11.0), weight_mean=jnp.float32(3.0))
    batch = images(jax.random.key(9), TEACHER, examples)
    after, info = m.updates["student"].apply(state, TEACHER, batch, jax.random.key(key))
    return jax.tree.map(lambda x, y: x - y, student, after.student), info, after


@pytest.mark.parametrize("name", [*DIVERGENCES, -1.0, -0.4, 0.0, 0.5, 1.0, 2.0])
def test_the_weight_is_the_second_derivative_times_r(name):
    h, weight = DIVERGENCES[name] if isinstance(name, str) else power(name)
    r = jnp.exp(jnp.linspace(-2, 2, 41))
    np.testing.assert_allclose(weight(r), jax.vmap(jax.grad(jax.grad(h)))(r) * r, rtol=2e-4)
    assert jnp.all(weight(r) > 0)


def test_powers_include_three_of_the_names():
    r = jnp.asarray([0.3, 2.0])
    for name, exponent in (("reverse_kl", 0.0), ("pearson", 1.0), ("forward_kl", -1.0)):
        for divergence in (power(exponent), DIVERGENCES[name]):
            np.testing.assert_allclose(divergence.weight(r), r**exponent, rtol=1e-6)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_with_a_ratio_of_one_all_divergences_have_one_gradient(name):
    base = direction(method(BLIND))[0]
    found = direction(method(BLIND, divergence=DIVERGENCES[name]))[0]
    scale = float(DIVERGENCES[name].weight(jnp.float32(1.0)))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, scale * y, rtol=1e-5), found, base)


def test_reverse_kl_is_dmd():
    """DMD: E w(t) (s_fake - s_real)(x_t) dx_t/dtheta, w = sigma^2 / alpha^2 against omega = 1; in float64."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        teacher, student, auxiliary = (
            {"m": jnp.float64(m), "s": jnp.float64(s)} for m, s in ((0.5, 0.4), (-0.3, 0.7), (-0.2, 0.9))
        )
        n, key = 512, jax.random.key(0)
        t = jnp.linspace(1e-3, 0.99, n)
        m = method(time_sampler=lambda key, examples, t_min, t_max: t)
        batch = Batch(jnp.zeros((n, 1), jnp.float64))
        after, _ = m.updates["student"].apply(m.init((student, auxiliary)), teacher, batch, key)
        found = jax.tree.map(jnp.subtract, student, after.student)
        keys = jax.random.split(stream(key, "examples"), n)
        z, eps = (normal(stream(keys, name), (n, 1), jnp.float64) for name in ("z", "x_t"))

        def noised(theta):
            return BRIDGE.alpha(t)[:, None] * (theta["m"] + theta["s"] * z) + BRIDGE.sigma(t)[:, None] * eps

        x_t, pull = jax.vjp(noised, student)
        fake, real = (BRIDGE.score(denoise(p, x_t, t), x_t, t) for p in (auxiliary, teacher))
        w = jnp.square(BRIDGE.sigma(t) / BRIDGE.alpha(t))[:, None]
        (expected,) = pull(w * (fake - real) / n)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-9), found, expected)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_the_gradient_is_that_of_the_divergence(name):
    """For one t and w = 1: E_{p_t} h(q_t / p_t) by quadrature, differentiated, against the mean of (3)."""
    n, alpha, sigma = 40_000, float(BRIDGE.alpha(jnp.float32(0.5))), float(BRIDGE.sigma(jnp.float32(0.5)))
    m = method(
        divergence=DIVERGENCES[name],
        student_weight=lambda bridge, t: jnp.full_like(t, (alpha / sigma) ** 2),  # w = 1
        time_sampler=lambda key, batch, t_min, t_max: jnp.full((batch,), 0.5),
    )
    found, _, _ = direction(m, examples=n)
    x = jnp.linspace(-8, 8, 4001)[:, None]

    def objective(theta):
        d = log_ratio(x, jnp.full(len(x), 0.5), q=theta)  # log p / q
        variance = jnp.square(alpha * TEACHER["s"]) + sigma**2
        p = jnp.exp(-jnp.square(x - alpha * TEACHER["m"]) / (2 * variance)) / jnp.sqrt(2 * np.pi * variance)
        return (p[:, 0] * DIVERGENCES[name].h(jnp.exp(-d))).sum() * (x[1, 0] - x[0, 0])

    expected = jax.grad(objective)(STUDENT)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0.06, atol=0.01), found, expected)


@pytest.mark.usefixtures("lenient")
def test_the_classifier_finds_the_ratio_at_all_times():
    """Its form is that of the ratio of two Gaussians, noised: it begins with two that are alike."""
    alike = {name: {"m": jnp.float32(0.0), "s": jnp.float32(1.0)} for name in "pq"}
    judge = Classifier(lambda phi: alike, lambda params, phi, x, t, batch: log_ratio(x, t, **params))
    m = dibregman(
        denoise,
        BRIDGE,
        optax.sgd(0.0),
        optax.adam(optax.linear_schedule(0.05, 0.0, 600)),
        judge,
        **PLAIN,
    )

    @jax.jit
    def run(state):
        def body(state, i):
            keys = jax.random.split(jax.random.fold_in(jax.random.key(2), i))
            return m.updates["auxiliary"].apply(state, TEACHER, images(keys[0], TEACHER, 2048), keys[1])

        return jax.lax.scan(body, state, jnp.arange(600, dtype=jnp.uint32))

    state, (_, told, _) = run(m.init((STUDENT, STUDENT)))
    x = jnp.linspace(-0.6, 1.1, 20)[:, None]
    for time in (0.2, 0.5, 0.8):
        t = jnp.full(20, time)
        found = jnp.exp(-judge.logit(state.classifier, None, x, t, None))
        np.testing.assert_allclose(found, jnp.exp(-log_ratio(x, t)), rtol=0.05)
    assert told[-1] < told[0] - 0.05


@pytest.mark.usefixtures("lenient")
@pytest.mark.parametrize("name", ["reverse_kl", "jensen_shannon", "pearson"])
def test_a_gaussian_is_recovered(name):
    """Student, auxiliary network and classifier are trained together, with all stabilisers of r and of the weight."""

    def logit(p, phi, x, t, batch):
        x, a, s = x[:, 0], BRIDGE.alpha(t), BRIDGE.sigma(t)
        terms = jnp.stack([a**2, a * x, a**2 * x**2, a**2 * s**2, a * x * s**2, (a * s * x) ** 2], 1)
        return terms @ p["c"]

    n = 1500
    rate = optax.cosine_decay_schedule(0.02, n)
    m = dibregman(
        denoise,
        BRIDGE,
        optax.chain(optax.scale_by_rms(0.99), optax.scale_by_learning_rate(rate)),
        optax.chain(optax.scale_by_rms(0.99), optax.scale_by_learning_rate(0.02)),
        Classifier(lambda phi: {"c": jnp.zeros(6)}, logit),
        divergence=DIVERGENCES[name],
        noise_channels=1,
        auxiliary_updates=2,
        ema_decay=0.98,
        normalise=False,
    )

    @jax.jit
    def run(state):
        def body(state, i):
            keys = jax.random.split(jax.random.fold_in(jax.random.key(4), i))
            state, info = m.step(state, TEACHER, images(keys[0], TEACHER, 3 * 512), keys[1])
            return state, info.ratio

        return jax.lax.scan(body, state, jnp.arange(n, dtype=jnp.uint32))

    state, ratios = run(m.init((STUDENT, STUDENT)))
    np.testing.assert_allclose(state.ema["m"], TEACHER["m"], rtol=0.02)
    np.testing.assert_allclose(jnp.square(state.ema["s"]), jnp.square(TEACHER["s"]), rtol=0.02)
    np.testing.assert_allclose(ratios[-50:].mean(), 1, atol=0.1)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_on_a_conditional_bridge_the_truth_is_a_fixed_point_and_others_move_to_it(name):
    bridge, truth = Brownian(1.0), gaussian.ONE_D
    network = gaussian.make_conditional_denoise(bridge, truth.S)
    other = {"M": jnp.float32([[0.3]]), "R": jnp.float32([[0.9]])}

    def log_ratio(student):
        """log p / q of x_t given x_T, both Gaussian."""

        def log_normal(params, x_t, t, x_T):
            a, b, c = (v[:, None] for v in bridge.coeffs(t))
            variance = jnp.square(b * params["R"]) + jnp.square(c)
            return -jnp.square(x_t - (a + b * params["M"]) * x_T) / (2 * variance) - jnp.log(variance) / 2

        return lambda params, phi, x_t, t, batch: (
            log_normal(truth.params, x_t, t, batch.x_T) - log_normal(student, x_t, t, batch.x_T)
        )[:, 0]

    n, key = 4096, jax.random.key(1)
    x_T = gaussian.draw_x_T(truth, jax.random.key(0), n)
    t = jax.random.uniform(stream(key, "t"), (n,), jnp.float32, 1e-3, 1.0)
    keys = jax.random.split(stream(key, "examples"), n)
    z, eps = normal(stream(keys, "z"), (n, 1)), normal(stream(keys, "x_t"), (n, 1))
    for student in (truth.params, other):
        judge = Classifier(lambda phi: {}, log_ratio(student))
        settings = {**PLAIN, "ratio_clip": (0.05, 20.0), "divergence": DIVERGENCES[name]}
        m = dibregman(network, bridge, optax.sgd(0.1), optax.sgd(0.0), judge, **settings)
        state = m.init((student, student))
        after, info = m.updates["student"].apply(state, truth.params, Batch(x_T), key)
        moved = jax.tree.map(lambda x, y, z: jnp.abs(x - z) - jnp.abs(y - z), student, after.student, truth.params)
        if student is other:
            a, b, c = (v[:, None] for v in bridge.coeffs(t))
            x_t = a * x_T + b * (x_T * student["M"] + z * student["R"]) + c * eps
            r = jnp.clip(jnp.exp(-judge.logit(None, None, x_t, t, Batch(x_T))), 0.05, 20.0)
            good, bad = (network(params, x_t, t, x_T) for params in (truth.params, student))
            gradient = DIVERGENCES[name].weight(r)[:, None] * (bad - good)
            for part, seen in (("M", x_T), ("R", z)):
                by_hand = student[part] - 0.1 * (gradient * seen).mean()
                np.testing.assert_allclose(after.student[part], by_hand, rtol=1e-4)
            assert all(v > 0.001 for v in jax.tree.leaves(moved))
            assert abs(info.ratio - 1) > 0.02
        else:
            np.testing.assert_allclose([info.student_grad_norm, info.ratio - 1], 0, atol=1e-5)


def test_the_stabilisers_by_hand():
    n, key = 512, jax.random.key(0)
    t = jax.random.uniform(stream(key, "t"), (n,), jnp.float32, 1e-3, 1.0)
    keys = jax.random.split(stream(key, "examples"), n)
    z, eps = normal(stream(keys, "z"), (n, 1)), normal(stream(keys, "x_t"), (n, 1))
    made = STUDENT["m"] + STUDENT["s"] * z
    x_t = BRIDGE.alpha(t)[:, None] * made + BRIDGE.sigma(t)[:, None] * eps
    good, bad = denoise(TEACHER, x_t, t), denoise(STUDENT, x_t, t)
    logit = log_ratio(x_t, t)
    raw = jnp.exp(-logit)
    tenth = np.minimum((np.asarray(t) * 10).astype(int), 9)
    pearson = {"divergence": DIVERGENCES["pearson"]}

    def expect(settings, omega):
        found, _, _ = direction(method(**pearson, **settings))
        np.testing.assert_allclose(found["m"], (omega * (bad - good)[:, 0]).mean(), rtol=1e-4)
        np.testing.assert_allclose(found["s"], (omega * ((bad - good) * z)[:, 0]).mean(), rtol=1e-4)

    expect({}, raw)
    expect({"logit_clip": 0.5}, jnp.exp(-jnp.clip(logit, -0.5, 0.5)))
    expect({"ratio_clip": (0.9, 1.2)}, jnp.clip(raw, 0.9, 1.2))
    expect({"ratio_mean": True}, raw * (1.0 + tenth))
    expect({"weight_mean": True}, raw / 3.0)
    expect({"normalise": True}, raw / jnp.abs(made - good)[:, 0])
    both = jnp.clip(raw, 0.9, 1.2) * (1.0 + tenth)
    expect({"ratio_clip": (0.9, 1.2), "ratio_mean": True, "weight_mean": True}, both / 3.0)


def test_means_of_ratio_and_weight_follow_the_batches():
    _, info, after = direction(method(divergence=DIVERGENCES["pearson"]))
    decay = 2 / 11  # of the first update
    np.testing.assert_allclose(after.weight_mean, decay * 3.0 + (1 - decay) * info.weight, rtol=1e-5)
    only = method(time_sampler=lambda key, batch, t_min, t_max: jnp.full((batch,), 0.25))
    after = direction(only)[2]
    mean, deviation = of_inverse(512, jnp.full(512, 0.25))
    assert deviation > 0.3
    expected = np.arange(1.0, 11.0)
    expected[2] = decay * 3.0 + (1 - decay) * mean
    np.testing.assert_allclose(after.ratio_mean, expected, rtol=1e-5)


def of_inverse(n, t):
    """Mean and deviation of the true p / q over n of the student's images at times t, as `direction` draws them."""
    keys = jax.random.split(stream(jax.random.key(0), "examples"), n)
    z, eps = normal(stream(keys, "z"), (n, 1)), normal(stream(keys, "x_t"), (n, 1))
    x_t = BRIDGE.alpha(t)[:, None] * (STUDENT["m"] + STUDENT["s"] * z) + BRIDGE.sigma(t)[:, None] * eps
    inverse = jnp.exp(log_ratio(x_t, t))
    return float(inverse.mean()), float(inverse.std())


@pytest.mark.parametrize("off", [0.0, 0.7])
def test_the_mean_of_the_ratio_corrects_a_classifier_and_leaves_a_perfect_one(off):
    """Of a logit that is off by a number, the means come to rest where the gradient is the true one."""
    n, t = 16384, jnp.full(16384, 0.35)
    judge = knowing(lambda x_t, t: log_ratio(x_t, t) + off)
    true, found = (
        method(classifier, divergence=DIVERGENCES["jeffreys"], time_sampler=lambda *_: t, **settings)
        for classifier, settings in ((ANALYTIC, {}), (judge, {"ratio_mean": True}))
    )
    expected = direction(true, examples=n)[0]
    state, batch = found.init((STUDENT, STUDENT)), images(jax.random.key(9), TEACHER, n)
    state = state._replace(ratio_mean=jnp.full(10, jnp.exp(off)))
    after, _ = found.updates["student"].apply(state, TEACHER, batch, jax.random.key(0))
    np.testing.assert_allclose(after.ratio_mean, state.ratio_mean, rtol=0.02)
    jax.tree.map(lambda x, y, z: np.testing.assert_allclose(x - y, z, rtol=1e-4), STUDENT, after.student, expected)


def test_the_adversarial_term_lowers_softplus_of_minus_the_logit():
    plain, _, _ = direction(method())
    found, _, _ = direction(method(adversarial=0.7))
    n, key = 512, jax.random.key(0)
    t = jax.random.uniform(stream(key, "t"), (n,), jnp.float32, 1e-3, 1.0)
    keys = jax.random.split(stream(key, "examples"), n)
    z, eps = normal(stream(keys, "z"), (n, 1)), normal(stream(keys, "x_t"), (n, 1))

    def term(theta):
        x_t = BRIDGE.alpha(t)[:, None] * (theta["m"] + theta["s"] * z) + BRIDGE.sigma(t)[:, None] * eps
        return jax.nn.softplus(-log_ratio(x_t, t)).mean()

    expected = jax.tree.map(lambda x, y: x + 0.7 * y, plain, jax.grad(term)(STUDENT))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4), found, expected)


@functools.cache
def networks():
    bridge, network = Cosine(), from_linen(MLP(out_channels=2, width=16, depth=2))
    net = make_denoiser(network, bridge, x_0)
    x = jax.random.normal(jax.random.key(0), (12, 4, 4, 2))
    phi = perturb(jax.jit(network.init)(jax.random.key(1), x[:1], jnp.zeros(1)))
    head = Head(8)
    params = perturb(jax.jit(head.init)(jax.random.key(2), jnp.zeros((1, 4, 4, 16)))["params"])
    return bridge, net, phi, (lambda: params, lambda p, h: head.apply({"params": p}, h)), x


@pytest.mark.parametrize("own", [False, True])
def test_a_head_on_the_features_of_a_network(own):
    _, net, phi, head, x = networks()
    judge = on_features(net, *head, own)
    params, t, batch = judge.init(phi), jnp.full(12, 0.4), Batch(x)
    other = jax.tree.map(lambda v: v + 0.3, phi)
    logit = judge.logit(params, other, x, t, batch)
    used = phi if own else other
    np.testing.assert_allclose(logit, head[1](params["head"], net(used, x, t, x, features=True)[1]), rtol=1e-5)
    by_params, by_phi = jax.grad(lambda a, b: judge.logit(a, b, x, t, batch).sum(), (0, 1))(params, other)
    assert optax.tree.norm(by_params["head"]) > 0
    assert optax.tree.norm(by_phi) == 0
    assert ("network" in by_params) == own
    if own:
        assert optax.tree.norm(by_params["network"]) > 0


@pytest.mark.parametrize("own", [False, True])
def test_microbatches_change_nothing(own):
    bridge, net, phi, head, x = networks()
    found = []
    for accumulate in (1, 3):
        m = dibregman(
            net,
            bridge,
            optax.sgd(0.1),
            optax.sgd(0.1),
            on_features(net, *head, own),
            auxiliary_updates=1,
            divergence=power(0.5),
            student_denoise=told_earlier(net, bridge, 0.7, True),
            accumulate=accumulate,
        )
        start = jax.tree.map(lambda v: v + 0.05, phi)
        state, info = jax.jit(m.step)(m.init((start, phi)), phi, Batch(x, 0.3 * x[::-1]), jax.random.key(3))
        assert all(np.isfinite(v) for v in info)
        found.append((state, info))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6), *found)


def test_the_reference_may_be_the_teachers_samples():
    asked = []

    def reference(teacher, keys, batch):
        asked.append((len(keys), len(batch.x_T)))
        return jnp.full_like(batch.x_T, teacher["m"])

    m = method(reference=reference, rates=(0.0, 0.1), accumulate=2)
    same = method(rates=(0.0, 0.1), accumulate=2)
    x_T = jnp.zeros((8, 1))
    state, key = m.init((STUDENT, STUDENT)), jax.random.key(0)
    found = m.updates["auxiliary"].apply(state, TEACHER, Batch(x_T), key)  # the classifier's loss with it
    expected = same.updates["auxiliary"].apply(state, TEACHER, Batch(x_T, x_T + TEACHER["m"]), key)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert set(asked) == {(4, 4)}  # part by part, as the rest
    with pytest.raises(ValueError, match="needs clean images, or a reference"):
        same.updates["auxiliary"].apply(state, TEACHER, Batch(x_T), key)


@pytest.mark.parametrize("settings", [{"ratio_clip": (20.0, 0.1)}, {"ratio_clip": (1.0, 1.0)}, {"logit_clip": -1.0}])
def test_bounds_that_leave_no_ratio(settings):
    with pytest.raises(ValueError, match="the bounds are 0 <= low < high"):
        method(**settings)


def test_the_auxiliary_has_its_weight_its_times_and_its_mask():
    asked = []

    def sampler(key, examples, t_min, T):
        asked.append((t_min, T))
        return jnp.linspace(t_min, T, examples)

    def loss(denoiser=denoise, mask=None, **settings):
        still = (optax.sgd(0.0) for _ in range(2))
        settings = {**PLAIN, "t_min": 0.4, "time_sampler": sampler, **settings}
        m = dibregman(denoiser, BRIDGE, *still, BLIND, **settings)
        clean = jnp.ones((16, 2))
        batch = Batch(0 * clean, clean, None if mask is None else jnp.broadcast_to(mask, clean.shape))
        return m.step(m.init((STUDENT, TEACHER)), TEACHER, batch, jax.random.key(0))[1].auxiliary_loss

    thrice = loss(auxiliary_weight=lambda bridge, t: jnp.full_like(t, 3.0))
    np.testing.assert_allclose(thrice, 3 * loss(), rtol=1e-6)
    assert set(asked) == {(0.4, BRIDGE.T)}

    def five(params, x_t, t, x_T=None, cond=None, z=None):
        return jnp.full_like(x_t, 5.0)

    assert loss(five) == 0
    assert loss(five, mask=jnp.asarray([True, False])) == 0  # outside it the image is x_T, and counts for nothing


def test_the_average_forgets_as_it_is_told():
    m = method(ema_decay=0.1)
    _, _, after = direction(m)
    for before, now, average in zip(*(jax.tree.leaves(x) for x in (STUDENT, after.student, after.ema)), strict=True):
        np.testing.assert_allclose(average, 0.1 * before + 0.9 * now, rtol=1e-6)


def test_samples_are_the_students_in_one_step():
    m, batch = method(), Batch(jnp.zeros((2000, 1)))
    x = m.sample(STUDENT, jax.random.key(0), batch)
    np.testing.assert_allclose([x.mean(), x.std()], [-0.3, 0.7], atol=0.05)
    with pytest.raises(ValueError, match="has one step, not 2"):
        m.sample(STUDENT, jax.random.key(0), batch, steps=2)
