"""IBMD against closed forms: Gaussian couplings in one and two dimensions, with the analytic teacher."""

from functools import partial

import gaussian
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.extend.core import Literal

from ibmd_jax.bridges import I2SB, Brownian, Flow, diffusion
from ibmd_jax.bridges.base import bridge as as_bridge
from ibmd_jax.bridges.times import TIME_SAMPLERS
from ibmd_jax.core.types import Batch
from ibmd_jax.methods import ibmd
from ibmd_jax.methods.base import WEIGHTS, in_turn, ten_to
from ibmd_jax.methods.ibmd import by_t, generate, state_on_path, student_terms
from ibmd_jax.methods.teacher import bridge_matching_loss, denoising_error
from ibmd_jax.networks.generator import told_earlier

COUPLINGS = {"1-D": gaussian.ONE_D, "2-D": gaussian.TWO_D}
BRIDGE = I2SB()
T_MIN = 1e-3
BATCH = 512


def method(coupling, bridge=BRIDGE, steps=1000, make_denoise=gaussian.make_denoise, **settings):
    d = len(coupling.S)
    rate = optax.cosine_decay_schedule(2e-2, steps)
    settings = {"auxiliary_updates": 3, "noise_channels": d, "t_min": T_MIN, **settings}
    fast = optax.adam(optax.cosine_decay_schedule(5e-2, 3 * steps, alpha=0.02), b1=0.0)
    return ibmd(make_denoise(bridge, coupling.S), bridge, optax.adam(rate, b1=0.5), fast, **settings)


def start(coupling):
    """The student and auxiliary begin far from the truth: a shrunk slope, and little noise."""
    d = len(coupling.S)
    return {"M": 0.3 * jnp.asarray(coupling.M), "R": 0.2 * jnp.eye(d)}


def initial_state(m, coupling):
    return m.init((start(coupling), jax.tree.map(jnp.copy, start(coupling))))


def draw_pairs(coupling, key, n):
    x_T = gaussian.draw_x_T(coupling, key, n)
    noise = jax.random.normal(jax.random.fold_in(key, 1), x_T.shape)
    return Batch(x_T, x_T @ coupling.M.T + noise @ coupling.R.T)


def train(m, coupling, steps=1000, clean=False):
    """The exported student after some steps, and what they reported, [steps] each."""

    @jax.jit
    def run(state):
        def body(state, i):
            key = jax.random.fold_in(jax.random.key(0), i)
            batch = draw_pairs(coupling, jax.random.fold_in(key, 1), BATCH * m.batches)
            return m.step(state, coupling.params, batch if clean else batch._replace(x_0=None), key)

        return jax.lax.scan(body, state, jnp.arange(steps))

    state, infos = run(initial_state(m, coupling))
    return m.export(state), infos


@pytest.mark.usefixtures("lenient")
@pytest.mark.parametrize("weight", ["one", "ten_to_1"])
@pytest.mark.parametrize("name", COUPLINGS)
def test_recovers_slope_and_variance_of_a_gaussian_coupling(name, weight):
    coupling = COUPLINGS[name]
    settings = {} if weight == "one" else {"student_weight": ten_to(1.0)}
    assert_recovered(train(method(coupling, ema_decay=0.99, **settings), coupling)[0], coupling)


def from_state(params, x_t, t, x_T, cond, z):
    """M x_T + R z, where z stands in the bridge from x_T to itself."""
    a, b, c = BRIDGE.coeffs(t[:, None])
    return x_T @ params["M"].T + (x_t - (a + b) * x_T) / c @ params["R"].T


VARIANTS = {
    "told earlier": {
        "make_denoise": gaussian.make_conditional_denoise,
        "student_denoise": told_earlier(from_state, BRIDGE, 0.9, from_noise=False),
    },
    "conditional": {"make_denoise": gaussian.make_conditional_denoise},
    "divided by the teacher's error": {"normalise": True},
    "pre-trained auxiliary": {"pretraining": 100},
    "weight g2": {"student_weight": WEIGHTS["g2"], "t_min": 0.1},
    "with clean images": {"real_data": (0.9, 0.92)},
}


@pytest.mark.usefixtures("lenient")
@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_recovers_the_coupling(name):
    coupling, settings = gaussian.TWO_D, VARIANTS[name]
    found, _ = train(method(coupling, ema_decay=0.99, **settings), coupling, clean="real_data" in settings)
    assert_recovered(found, coupling)


def assert_recovered(found, coupling):
    np.testing.assert_allclose(found["M"], coupling.M, atol=0.02 * np.abs(coupling.M).max())
    variance = coupling.R @ coupling.R.T
    np.testing.assert_allclose(found["R"] @ found["R"].T, variance, atol=0.02 * np.abs(variance).max())


def exact_loss(theta, phi, teacher, coupling, bridge=BRIDGE, weight=lambda b, t: jnp.ones_like(t)):
    """Equation (3) by quadrature over t, phi held fixed."""
    t = T_MIN + (1 - T_MIN) * (jnp.arange(400, dtype=jnp.float32) + 0.5) / 400
    S = jnp.asarray(coupling.S)

    def at(u):
        good, bad = (gaussian.exact_error(bridge, p, theta, S, u) for p in (teacher, phi))
        return weight(bridge, u) * (good - bad)

    return jax.vmap(at)(t).mean()


def estimated_loss(theta, phi, teacher, coupling, key, bridge=BRIDGE, weight=lambda b, t: jnp.ones_like(t), n=200_000):
    denoise, d = gaussian.make_denoise(bridge, coupling.S), len(coupling.S)
    batch = Batch(gaussian.draw_x_T(coupling, jax.random.fold_in(key, 0), n))
    t = jax.random.uniform(jax.random.fold_in(key, 1), (n,), minval=T_MIN, maxval=1.0)
    x_0 = generate(denoise, theta, batch.x_T, bridge.T, batch, jax.random.fold_in(key, 2), d)
    x_t = bridge.sample(jax.random.fold_in(key, 3), x_0, batch.x_T, t)
    terms = student_terms(denoise, bridge, teacher, phi, x_0, x_t, t, batch, weight)
    assert all(x.shape == (n,) for x in terms)
    return (terms.teacher - terms.auxiliary).mean()


@as_bridge
class CutBridge(I2SB):
    """I2SB without the gradient through x_t, which turns IBMD into VSD."""

    def sample(self, key, x_0, x_T, t):
        return jax.lax.stop_gradient(super().sample(key, x_0, x_T, t))


def loss_and_gradient_agree(coupling, bridge):
    teacher, phi = coupling.params, {"M": 0.6 * jnp.asarray(coupling.M), "R": 0.9 * jnp.asarray(coupling.R)}
    theta = start(coupling)
    exact = jax.value_and_grad(exact_loss)(theta, phi, teacher, coupling, weight=ten_to(1.0))
    runs = [
        jax.value_and_grad(estimated_loss)(
            theta, phi, teacher, coupling, jax.random.key(i), bridge=bridge, weight=ten_to(1.0)
        )
        for i in range(8)
    ]
    flat = np.stack([np.concatenate([np.ravel(x) for x in jax.tree.leaves(run)]) for run in runs])
    expected = np.concatenate([np.ravel(x) for x in jax.tree.leaves(exact)])
    error = np.abs(flat.mean(0) - expected)
    return bool((error < 5 * flat.std(0, ddof=1) / len(runs) ** 0.5 + 1e-4).all())


@pytest.mark.parametrize("name", COUPLINGS)
def test_loss_and_gradient_are_unbiased(name):
    assert loss_and_gradient_agree(COUPLINGS[name], BRIDGE)


@pytest.mark.parametrize("name", COUPLINGS)
def test_without_the_gradient_through_x_t_it_is_another_gradient(name):
    assert not loss_and_gradient_agree(COUPLINGS[name], CutBridge())


@pytest.mark.parametrize("name", COUPLINGS)
def test_the_gradient_vanishes_at_the_truth(name):
    coupling = COUPLINGS[name]
    truth = coupling.params
    grads = jax.grad(estimated_loss)(truth, truth, truth, coupling, jax.random.key(0), n=1000)
    for leaf in jax.tree.leaves(grads):
        np.testing.assert_array_equal(leaf, 0)  # the two terms are the same numbers
    exact = jax.grad(exact_loss)(start(coupling), start(coupling), truth, coupling)
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(exact)) > 0.01


def test_teacher_and_auxiliary_get_exactly_zero_gradient_from_the_student_loss():
    coupling = gaussian.TWO_D
    grads = jax.grad(estimated_loss, argnums=(1, 2))(
        start(coupling), start(coupling), coupling.params, coupling, jax.random.key(0), n=100
    )
    for leaf in jax.tree.leaves(grads):
        np.testing.assert_array_equal(leaf, 0)


def one_step(m, coupling, key=0, **replace):
    batch = Batch(gaussian.draw_x_T(coupling, jax.random.key(9), 64 * m.batches))
    state = initial_state(m, coupling)
    return state, jax.jit(m.step)(state, coupling.params, batch._replace(**replace), jax.random.key(key))


def differs(a, b):
    return any(bool((x != y).any()) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_each_update_moves_its_own_network_only():
    coupling = gaussian.TWO_D
    still, moving = optax.sgd(0.0), optax.sgd(0.1)
    denoise = gaussian.make_denoise(BRIDGE, coupling.S)
    for student, auxiliary in ((still, moving), (moving, still)):
        m = ibmd(denoise, BRIDGE, student, auxiliary, auxiliary_updates=2, noise_channels=2)
        before, (after, _) = one_step(m, coupling)
        assert differs(before.student, after.student) == (student is moving)
        assert differs(before.auxiliary, after.auxiliary) == (auxiliary is moving)


def test_the_auxiliary_makes_L_updates_on_fresh_batches():
    """L steps of SGD on (2) by hand, with the keys and batches that step() uses, give the same auxiliary."""
    coupling, L = gaussian.TWO_D, 3
    denoise = gaussian.make_denoise(BRIDGE, coupling.S)
    m = ibmd(denoise, BRIDGE, optax.sgd(0.0), optax.sgd(0.1), auxiliary_updates=L, noise_channels=2, t_min=T_MIN)
    before, (after, info) = one_step(m, coupling)

    from ibmd_jax.bridges.times import uniform
    from ibmd_jax.core.streams import step_key, stream
    from ibmd_jax.methods.base import split_batch

    batches = split_batch(Batch(gaussian.draw_x_T(coupling, jax.random.key(9), 64 * m.batches)), m.batches)
    phi, losses = before.auxiliary, []
    for i in range(L):
        key = step_key(jax.random.key(0), "auxiliary", i)
        k = jax.random.split(stream(key, "examples"), 64)
        part = Batch(batches.x_T[i])
        data = part._replace(x_0=generate(denoise, before.student, part.x_T, 1.0, part, stream(k, "z"), 2))
        t = uniform(stream(key, "t"), 64, T_MIN, 1.0)
        loss, grad = jax.value_and_grad(
            lambda p, data=data, t=t, k=k: bridge_matching_loss(denoise, BRIDGE, p, data, t, stream(k, "x_t")).mean()
        )(phi)
        phi = jax.tree.map(lambda p, g: p - 0.1 * g, phi, grad)
        losses.append(float(loss))
    for x, y in zip(jax.tree.leaves(phi), jax.tree.leaves(after.auxiliary), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(info.auxiliary_loss, np.mean(losses), rtol=1e-5)


@pytest.mark.usefixtures("lenient")
@pytest.mark.parametrize(
    "settings",
    [
        {"real_data": (0.9, 0.92), "normalise": True},
        {"steps": 3, "time_sampler": TIME_SAMPLERS["stratified"]},
        {"steps": 3, "multistep": "posterior", "rollout": "ema"},
    ],
)
def test_microbatches_change_nothing(settings):
    coupling = gaussian.TWO_D
    pairs = draw_pairs(coupling, jax.random.key(9), 32 * 2)
    found = []
    for accumulate in (1, 4):
        m = method(coupling, accumulate=accumulate, auxiliary_updates=1, **settings)
        state = initial_state(m, coupling)
        found.append(jax.jit(m.step)(state, coupling.params, pairs, jax.random.key(0)))
    for a, b in zip(*(jax.tree.leaves(x) for x in found), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert differs(state.student, found[0][0].student)


def test_terms_in_turn_have_their_own_values_and_gradients_one_after_the_other():
    x, y = jax.random.normal(jax.random.key(0), (2, 5, 3))

    def first(x, y):
        return (jnp.sin(x) * y).sum(-1), x.mean()

    def second(x, y):
        return jnp.cosh(x * y).prod(-1), y

    def loss(terms, x, y):
        (a, mean), (b, same) = terms(x, y)
        return (jnp.arange(5.0) * a - jnp.square(b)).mean(), (a, b, mean, same)

    def in_turn_(x, y):
        return in_turn((first, second), x, y)

    def apart(x, y):
        return first(x, y), second(x, y)

    found, expected = (
        jax.value_and_grad(partial(loss, terms), argnums=(0, 1), has_aux=True)(x, y) for terms in (in_turn_, apart)
    )
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), found, expected)
    equations = jax.make_jaxpr(in_turn_)(x, y).eqns
    named = {e.primitive.name: e for e in reversed(equations)}  # the first of each name

    def feeds(name, other):
        made = set(named[name].outvars)
        for e in equations:
            if any(v in made for v in e.invars if not isinstance(v, Literal)):
                made |= set(e.outvars)
        return bool(made & set(named[other].invars))

    assert feeds("cos", "optimization_barrier")  # the gradient of the sine, and what has to follow it
    assert feeds("optimization_barrier", "cosh" if "cosh" in named else "exp")


@pytest.mark.usefixtures("lenient")
def test_clean_images_are_never_touched():
    """A batch whose x_0 is NaN gives the same step, bit for bit, as one that has none."""
    coupling = gaussian.ONE_D
    m = method(coupling)
    _, (without, info) = one_step(m, coupling)
    _, (poisoned, _) = one_step(m, coupling, x_0=jnp.full((64 * m.batches, 1), jnp.nan))
    assert not differs(without, poisoned)
    assert all(np.isfinite(v).all() for v in info)


@pytest.mark.usefixtures("lenient")
def test_ema_averages_the_student():
    coupling = gaussian.ONE_D
    m = method(coupling, ema_decay=0.99)
    before, (after, _) = one_step(m, coupling)
    d = 2 / 11  # the first update of the warm-up
    for b, s, e in zip(*(jax.tree.leaves(x) for x in (before.student, after.student, after.ema)), strict=True):
        np.testing.assert_allclose(e, d * b + (1 - d) * s, rtol=1e-6)


def test_the_loss_counts_the_mask_only():
    """Pixels outside the mask equal x_T in x_0 and carry no loss."""
    x_T = jax.random.normal(jax.random.key(0), (4, 2, 2, 1))
    mask = jnp.zeros((4, 2, 2, 1), bool).at[:, 0, 0].set(True)

    def denoise(params, x_t, t, x_T=None, cond=None, z=None):
        return params * x_t + 5.0

    batch = Batch(x_T, mask=mask)
    x_0 = generate(denoise, jnp.float32(0), batch.x_T, 1.0, batch, jax.random.key(1))
    np.testing.assert_array_equal(x_0, jnp.where(mask, 5.0, x_T))
    t = jnp.full((4,), 0.5)
    x_t = BRIDGE.sample(jax.random.key(2), x_0, x_T, t)
    terms = student_terms(denoise, BRIDGE, jnp.float32(0), jnp.float32(1), x_0, x_t, t, batch)
    for x in (terms.teacher, terms.teacher_identity, terms.distance):
        np.testing.assert_array_equal(x, 0)  # the hole is predicted exactly; what is wrong elsewhere does not count
    assert (terms.auxiliary > 0).all()
    for params, wrong in ((0.0, False), (1.0, True)):
        error = denoising_error(denoise, BRIDGE, jnp.float32(params), x_t, t, x_0, batch)
        assert ((error > 0) == wrong).all()


@pytest.mark.parametrize("bridge", [Brownian(), I2SB()], ids=repr)
def test_the_generator_is_the_denoiser_at_T(bridge):
    seen = []

    def denoise(params, x_t, t, x_T=None, cond=None, z=None):
        seen.append((t, z.shape))
        return x_t

    m = ibmd(denoise, bridge, optax.sgd(0.1), optax.sgd(0.1), noise_channels=2)
    m.sample(None, jax.random.key(0), Batch(jnp.zeros((3, 4, 4, 1))))
    assert seen == [(bridge.T, (3, 4, 4, 2))]


@pytest.mark.parametrize("platform", ["cpu", "tpu", "cuda"])
def test_the_auxiliary_loop_is_written_out_on_cpu_only(platform):
    coupling = gaussian.ONE_D
    denoise = gaussian.make_denoise(BRIDGE, coupling.S)
    calls, loops = {}, {}
    for L in (1, 2, 6):
        m = ibmd(denoise, BRIDGE, optax.sgd(0.1), optax.sgd(0.1), auxiliary_updates=L, noise_channels=1)
        batch = Batch(gaussian.draw_x_T(coupling, jax.random.key(9), 8 * m.batches))
        traced = jax.jit(m.step).trace(initial_state(m, coupling), coupling.params, batch, jax.random.key(0))
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        calls[L], loops[L] = text.count("call @"), text.count("stablehlo.while")
    assert calls[6] - calls[2] == (4 if platform == "cpu" else 0)
    assert len(set(loops.values())) == 1  # a single update is none either


@pytest.mark.parametrize(("accumulate", "loops"), [(1, 1), (2, 3)])
def test_both_updates_run_through_their_microbatches_in_a_loop(accumulate, loops):
    coupling = gaussian.ONE_D
    denoise = gaussian.make_denoise(BRIDGE, coupling.S)
    settings = {"auxiliary_updates": 3, "noise_channels": 1, "accumulate": accumulate}
    m = ibmd(denoise, BRIDGE, optax.sgd(0.1), optax.sgd(0.1), **settings)
    batch = Batch(gaussian.draw_x_T(coupling, jax.random.key(9), 8 * m.batches))
    traced = jax.jit(m.step).trace(initial_state(m, coupling), coupling.params, batch, jax.random.key(0))
    assert traced.lower(lowering_platforms=("tpu",)).as_text().count("stablehlo.while") == loops


NODES = jnp.linspace(0, 1, 33)


def slopes(params):
    """A table of the posterior mean's K(t) in x_0_hat = K(t) x_t, in 1-D."""
    S = jnp.asarray(gaussian.ONE_D.S)
    return {"K": jax.vmap(lambda t: gaussian.gain(BRIDGE, params, S, t)[0][0, 0])(NODES)}


def several_steps(student, first, iterations, **settings):
    """A student of several steps, trained from `first`, and its method. student(theta, t [B, 1]) -> M, R of a step.

    Teacher and auxiliary are tables of K(t).
    """

    def denoise(params, x_t, t, x_T=None, cond=None, z=None):
        if z is None:
            return jnp.interp(t, NODES, params["K"])[:, None] * x_t
        M, R = student(params, jnp.broadcast_to(t, x_t.shape[:1])[:, None])
        return M * x_t + R * z

    m = ibmd(
        denoise,
        BRIDGE,
        optax.adam(optax.cosine_decay_schedule(2e-2, iterations), b1=0.5),
        optax.adam(optax.cosine_decay_schedule(5e-2, 3 * iterations, alpha=0.02), b1=0.0),
        auxiliary_updates=3,
        noise_channels=1,
        t_min=T_MIN,
        **settings,
    )
    coupling = gaussian.ONE_D

    @jax.jit
    def train(state):
        def body(state, i):
            key = jax.random.fold_in(jax.random.key(0), i)
            batch = Batch(gaussian.draw_x_T(coupling, jax.random.fold_in(key, 1), BATCH * m.batches))
            return m.step(state, slopes(coupling.params), batch, key)

        return jax.lax.scan(body, state, jnp.arange(iterations))[0]

    return m, m.export(train(m.init((first, slopes(start(coupling))))))


@pytest.mark.usefixtures("lenient")
@pytest.mark.parametrize("multistep", ["marginal", "posterior"])
def test_a_student_of_two_steps_reaches_the_exact_solution(multistep):
    """1-D, the first step being right already: the second has one solution then."""
    coupling, S = gaussian.ONE_D, jnp.asarray(gaussian.ONE_D.S)

    def student(theta, t):
        return (jnp.where(t > 0.75, coupling.params[name], theta[name]) for name in ("M", "R"))

    m, theta = several_steps(student, start(coupling), 1500, steps=2, multistep=multistep)
    a, b, _ = BRIDGE.coeffs(jnp.float32(0.5))
    C, V = gaussian.moments(coupling.params, S)
    gain, cov = gaussian.gain(BRIDGE, coupling.params, S, jnp.float32(0.5))
    # Posterior: x_0 given x_t as it is. Marginal: what gives x_0 its covariance with x_T.
    slope = gain if multistep == "posterior" else C / (a * S + b * C)
    np.testing.assert_allclose(theta["M"], slope, rtol=0.03)
    np.testing.assert_allclose(theta["R"] ** 2, V - slope**2 * cov, rtol=0.1)
    x_T = gaussian.draw_x_T(coupling, jax.random.key(1), 100_000)
    for n in (1, 2):
        x_0 = m.sample(theta, jax.random.key(2), Batch(x_T), steps=n)
        np.testing.assert_allclose(x_0.var(), V[0, 0], rtol=0.03)


@pytest.mark.usefixtures("lenient")
def test_every_one_of_four_steps_ends_in_the_exact_coupling():
    """1-D, no step known before. With an n for each update the variances are 1.2, 1.3 and 0.2 of the exact one."""
    coupling, N = gaussian.ONE_D, 4

    def student(theta, t):
        n = jnp.round((1 - t) * N).astype(jnp.int32)
        return (theta[name].ravel()[n] for name in ("M", "R"))

    first = jax.tree.map(lambda x: jnp.broadcast_to(x.ravel(), (N,)), start(coupling))
    m, theta = several_steps(student, first, 800, steps=N, multistep="marginal")
    x_T = gaussian.draw_x_T(coupling, jax.random.key(1), 100_000)
    C, V = (x[0, 0] for x in gaussian.moments(coupling.params, jnp.asarray(coupling.S)))
    for n in (1, 2, 4):
        x_0 = m.sample(theta, jax.random.key(2), Batch(x_T), steps=n)
        np.testing.assert_allclose([x_0.var(), (x_0 * x_T).mean()], [V, C], rtol=0.06)


def test_in_several_steps_too_what_is_outside_the_mask_stays():
    x_T = jax.random.normal(jax.random.key(0), (4, 2, 2, 1))
    mask = jnp.zeros(x_T.shape, bool).at[:, 0, 0].set(True)

    def denoise(params, x_t, t, x_T=None, cond=None, z=None):
        return 0.5 * x_t + 1

    m = ibmd(denoise, BRIDGE, None, None, steps=2)
    restored = m.sample(None, jax.random.key(1), Batch(x_T, mask=mask))
    np.testing.assert_array_equal(restored[~mask], x_T[~mask])
    assert (restored[mask] != x_T[mask]).all()


def test_fewer_steps_are_some_of_those_trained_at():
    """Of 1, 2/3, 1/3: for two evaluations 1 and 2/3, and not 1/2."""
    seen = []

    def denoise(params, x_t, t, x_T=None, cond=None, z=None):
        jax.debug.callback(lambda t: seen.append(float(np.max(t))), t)
        return params * x_t

    m = ibmd(denoise, BRIDGE, None, None, steps=3)
    for n, times in ((1, [1]), (2, [1, 2 / 3]), (3, [1, 2 / 3, 1 / 3])):
        seen.clear()
        m.sample(jnp.float32(1), jax.random.key(0), Batch(jnp.ones((2, 1))), steps=n).block_until_ready()
        jax.effects_barrier()
        np.testing.assert_allclose(sorted(seen, reverse=True), times, atol=1e-6)
    with pytest.raises(ValueError, match="has up to 3 steps, not 4"):
        m.sample(jnp.float32(1), jax.random.key(0), Batch(jnp.ones((2, 1))), steps=4)


def test_with_alpha_and_beta_near_1_clean_images_take_no_part():
    coupling, after = gaussian.ONE_D, []
    denoise = gaussian.make_denoise(BRIDGE, coupling.S)
    for real_data in ((1.0, 1.0), (0.9999, 0.9999), (0.9, 0.92)):
        settings = {"noise_channels": 1, "auxiliary_updates": 1, "real_data": real_data}
        m = ibmd(denoise, BRIDGE, optax.sgd(1.0), optax.sgd(1.0), **settings)
        batch = draw_pairs(coupling, jax.random.key(0), 64 * m.batches)
        state, _ = jax.jit(m.step)(initial_state(m, coupling), coupling.params, batch, jax.random.key(1))
        after.append(jnp.concatenate([x.ravel() for x in jax.tree.leaves((state.student, state.auxiliary))]))
    assert jnp.abs(after[2] - after[0]).max() > 0.01
    np.testing.assert_allclose(after[1], after[0], atol=1e-3)


def test_a_posterior_from_noise_is_refused():
    with pytest.raises(ValueError, match="takes x_T for a part of x_t"):
        ibmd(None, Flow(), None, None, steps=2, multistep="posterior", from_noise=True)


def test_a_last_step_of_posterior_that_starts_before_t_min_is_refused():
    with pytest.raises(ValueError, match=r"t_min = 0.25: the last of 4 steps starts at 0.25"):
        ibmd(None, I2SB(), None, None, steps=4, multistep="posterior", t_min=0.25)


@pytest.mark.parametrize(
    "wrong",
    [
        {"multistep": "both"},
        {"rollout": "teacher"},
        {"real_data": (0.0, 0.0)},
        {"real_data": (1.0, 0.9)},
        {"real_data": (0.9, -3.0)},
        {"real_data": (0.9,)},
        {"real_data": ("a", "b")},
        {"same_z": True, "multistep": "posterior"},
    ],
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ibmd(None, BRIDGE, None, None, steps=2, **wrong)


@pytest.mark.usefixtures("lenient")
@pytest.mark.parametrize("bridge", [Flow(), diffusion.Linear(), diffusion.EDM(5.0)], ids=repr)
def test_a_diffusion_or_flow_teacher_gives_a_generator_of_its_distribution(bridge):
    """x_0 ~ N(0, 0.8^2): the student is w x_T / sigma_T, teacher and auxiliary are posterior means for their own w."""
    sigma_T = bridge.sigma(jnp.float32(bridge.T))

    def denoise(params, x_t, t, x_T=None, cond=None, z=None):
        if z is not None:
            return params / sigma_T * x_t
        v = jnp.square(params)
        _, b, n = (x[:, None] for x in bridge.split(t))
        return b * v / (b * b * v + n * n) * x_t

    steps = 1500
    m = ibmd(
        denoise,
        bridge,
        optax.adam(optax.cosine_decay_schedule(1e-2, steps), b1=0.5),
        optax.adam(optax.cosine_decay_schedule(5e-2, 3 * steps, alpha=0.02), b1=0.0),
        auxiliary_updates=3,
        noise_channels=1,
        t_min=0.01,
        from_noise=isinstance(bridge, Flow),
    )
    truth = jnp.float32(0.8)

    @jax.jit
    def run(state):
        def body(state, i):
            key = jax.random.fold_in(jax.random.key(0), i)
            x_T = sigma_T * jax.random.normal(jax.random.fold_in(key, 1), (BATCH * m.batches, 1))
            return m.step(state, truth, Batch(x_T), key)[0], None

        return jax.lax.scan(body, state, jnp.arange(steps))[0]

    first = jnp.float32(0.3)
    np.testing.assert_allclose(m.export(run(m.init((first, jnp.copy(first))))), truth, rtol=0.02)


@pytest.mark.usefixtures("lenient")
def test_the_identities_vanish_as_the_student_converges():
    coupling = gaussian.ONE_D
    _, infos = train(method(coupling), coupling)
    early, late = (
        jax.tree.map(lambda x, r=rows: np.abs(np.mean(x[r], 0)), infos) for rows in (np.s_[:20], np.s_[-300:])
    )
    assert early.teacher_identity > 0.03
    assert late.teacher_identity < 0.003
    assert late.auxiliary_identity < 0.003
    np.testing.assert_allclose(np.nanmean(infos.teacher_by_t[-1]), infos.teacher_term[-1], rtol=0.2)


def test_losses_by_t_are_means_over_equal_parts():
    t = jnp.asarray([0.0, 0.1, 0.3, 1.0, 0.99])
    np.testing.assert_array_equal(by_t(jnp.arange(5.0), t, 1.0), [0.5, 2.0, np.nan, 3.5])


def test_pretraining_holds_the_student():
    coupling = gaussian.TWO_D
    denoise = gaussian.make_denoise(BRIDGE, coupling.S)
    m = ibmd(denoise, BRIDGE, optax.sgd(0.1, 0.9), optax.sgd(0.1, 0.9), noise_channels=2, pretraining=1)
    before, (held, _) = one_step(m, coupling)
    assert not differs(*((s.student, s.ema, s.student_optimizer) for s in (before, held)))
    assert differs(before.auxiliary, held.auxiliary)
    assert differs(before.auxiliary_optimizer, held.auxiliary_optimizer)
    x_T = gaussian.draw_x_T(coupling, jax.random.key(9), 64 * m.batches)
    after, _ = jax.jit(m.step)(held, coupling.params, Batch(x_T), jax.random.key(1))
    assert differs(held.student, after.student)
    assert differs(held.ema, after.ema)


def test_clean_images_are_asked_for_where_they_take_part():
    coupling = gaussian.ONE_D
    m = ibmd(gaussian.make_denoise(BRIDGE, coupling.S), BRIDGE, optax.sgd(0.1), optax.sgd(0.1), real_data=(0.9, 0.9))
    with pytest.raises(ValueError, match="the batch has no x_0"):
        one_step(m, coupling)


def test_a_blind_student_is_given_its_own_label_and_the_others_the_task():
    seen = []

    def denoise(params, x_t, t, x_T=None, cond=None, z=None):
        seen.append((z is not None, cond))
        return params * x_t

    def step(label):
        seen.clear()
        m = ibmd(
            denoise, BRIDGE, optax.sgd(0.1), optax.sgd(0.1), auxiliary_updates=1, noise_channels=1, student_label=label
        )
        one = jnp.ones(())
        batch = Batch(jnp.ones((4, 3)), cond=jnp.arange(4, dtype=jnp.int32))
        with jax.disable_jit():
            m.step(m.init((one, one)), one, batch, jax.random.key(0))
            m.sample(one, jax.random.key(0), batch)
        return {which: {tuple(np.asarray(c).tolist()) for w, c in seen if w == which} for which in (True, False)}

    assert step(None) == {True: {(0, 2), (1, 3), (0, 1, 2, 3)}, False: {(0, 2), (1, 3)}}
    assert step(7) == {True: {(7, 7), (7, 7, 7, 7)}, False: {(0, 2), (1, 3)}}


@pytest.mark.parametrize("same", [True, False])
def test_one_z_can_serve_a_whole_roll_out(same):
    seen = []

    def denoise(params, x_t, t, x_T=None, cond=None, z=None):
        jax.debug.callback(lambda z: seen.append(np.asarray(z).tobytes()), z, ordered=True)
        return params * x_t

    m = ibmd(denoise, BRIDGE, optax.sgd(0.1), optax.sgd(0.1), steps=3, noise_channels=1, same_z=same)
    m.sample(jnp.ones(()), jax.random.key(0), Batch(jnp.ones((4, 3))))
    jax.effects_barrier()
    assert len(seen) == 3
    assert len(set(seen)) == (1 if same else 3)
    times, batch = jnp.asarray([1.0, 0.7, 0.4]), Batch(jnp.ones((4, 3)))
    key = jax.random.key(1)
    for n in range(3):
        seen.clear()
        x = state_on_path(denoise, BRIDGE, jnp.ones(()), batch, times, jnp.int32(n), key, 1, key if same else None)
        jax.effects_barrier()
        assert len(seen) == n
        assert len(set(seen)) == (min(n, 1) if same else n)
        assert bool((x == batch.x_T).all()) == (n == 0)


def told_in_a_step(note, key, **settings):
    """What the student is told in one step of both networks: `note` of the t and z of each of its evaluations."""
    seen = []

    def denoise(params, x_t, t, x_T=None, cond=None, z=None):
        if z is not None:
            jax.debug.callback(lambda t, z: seen.append(note(t, z)), t, z)
        return params * x_t

    sgd = optax.sgd(0.1)
    m = ibmd(denoise, BRIDGE, sgd, sgd, steps=4, noise_channels=1, auxiliary_updates=1, **settings)
    one = jnp.ones(())
    jax.jit(m.step)(m.init((one, one)), one, Batch(jnp.ones((128, 3))), jax.random.key(key))
    jax.effects_barrier()
    return seen


@pytest.mark.parametrize("same", [True, False])
def test_a_state_and_the_x_0_made_from_it_have_one_z_if_that_is_asked_for(same):
    counts = set()
    for key in range(5):
        seen = told_in_a_step(lambda t, z: np.asarray(z).tobytes(), key, same_z=same)
        counts.add(len(seen))
        assert len(set(seen)) == (2 if same else len(seen))  # one for the auxiliary's update, one for the student's
    assert len(counts) > 2


@pytest.mark.parametrize("multistep", ["marginal", "posterior"])
def test_examples_share_the_number_of_their_state_or_have_one_each(multistep):
    most = max(told_in_a_step(lambda t, z: np.unique(t).tolist(), 0, multistep=multistep), key=len)
    assert most == [0.25, 0.5, 0.75, 1.0] if multistep == "posterior" else len(most) == 1


@pytest.mark.parametrize("multistep", ["marginal", "posterior"])
def test_the_roll_out_is_made_by_the_parameters_that_are_asked_for(multistep):
    """With a student or an average of NaN, the first state tells which of them made it."""
    coupling = gaussian.ONE_D
    denoise = gaussian.make_denoise(BRIDGE, coupling.S)

    def finite(rollout, poisoned):
        m = ibmd(
            denoise,
            BRIDGE,
            optax.sgd(0.0),
            optax.sgd(0.1),
            steps=2,
            multistep=multistep,
            rollout=rollout,
            auxiliary_updates=1,
            noise_channels=1,
        )
        state = initial_state(m, coupling)
        state = state._replace(**{poisoned: jax.tree.map(lambda x: jnp.nan * x, getattr(state, poisoned))})
        x_T = gaussian.draw_x_T(coupling, jax.random.key(9), 64 * m.batches)
        steps = (jax.jit(m.step)(state, coupling.params, Batch(x_T), jax.random.key(i))[1] for i in range(4))
        return all(np.isfinite(info.auxiliary_loss) for info in steps)

    assert finite("student", "ema")
    assert not finite("ema", "ema")
    assert not finite("ema", "student")  # it still makes x_0


def zero_networks(**settings):
    """One step without learning, where teacher and auxiliary answer 0 and the student 3 x_T: x_0 is the loss."""

    def denoise(params, x_t, t, x_T=None, cond=None, z=None):
        return params * x_t if z is not None else 0 * params * x_t

    m = ibmd(denoise, BRIDGE, optax.sgd(0.0), optax.sgd(0.0), auxiliary_updates=1, noise_channels=1, **settings)
    x_T = jax.random.normal(jax.random.key(0), (2000, 5))
    three = jnp.float32(3.0)
    return jax.jit(m.step)(m.init((three, three)), three, Batch(x_T, 2 * x_T), jax.random.key(1))[1]


def test_each_network_has_its_own_weight():
    def constant(value):
        return lambda bridge, t: jnp.full_like(t, value)

    plain, weighted = zero_networks(), zero_networks(student_weight=constant(2.0), auxiliary_weight=constant(3.0))
    for name in ("teacher_term", "auxiliary_term"):
        np.testing.assert_allclose(getattr(weighted, name), 2 * getattr(plain, name), rtol=1e-6)
    np.testing.assert_allclose(weighted.auxiliary_loss, 3 * plain.auxiliary_loss, rtol=1e-6)


def test_clean_images_take_part_with_the_weights_of_equation_6():
    alpha, beta = 0.8, 0.6
    plain, real = zero_networks(), zero_networks(real_data=(alpha, beta))
    np.testing.assert_allclose(real.teacher_term, (beta / alpha) ** 2 * plain.teacher_term, rtol=1e-5)
    np.testing.assert_allclose(real.loss, 0, atol=1e-5)
    power = plain.auxiliary_loss / 9  # of x_T; x_0 is 3 x_T where it is made, and 2 x_T where it is real
    expected = power * (alpha * (beta / alpha * 3) ** 2 + (1 - alpha) * ((1 - beta) / (1 - alpha) * 2) ** 2)
    np.testing.assert_allclose(real.auxiliary_loss, expected, rtol=1e-4)


@pytest.mark.parametrize("settings", [{"real_data": (0.8, 0.6)}, {"normalise": True}], ids=str)
def test_the_loss_of_an_example_is_scaled(settings):
    """By alpha, or by 1 / |x_0_* - x_0|, of which no gradient is taken: a single example's gradient has one factor."""
    coupling = gaussian.ONE_D
    denoise = gaussian.make_denoise(BRIDGE, coupling.S)

    def gradient(**settings):
        m = ibmd(denoise, BRIDGE, optax.sgd(1.0), optax.sgd(0.0), auxiliary_updates=1, noise_channels=1, **settings)
        state = initial_state(m, coupling)
        state = state._replace(auxiliary={"M": jnp.float32([[0.5]]), "R": jnp.float32([[0.4]])})
        batch = Batch(jnp.full((2, 1), 0.7), jnp.zeros((2, 1)))
        after, info = jax.jit(m.step)(state, coupling.params, batch, jax.random.key(0))
        return {name: (state.student[name] - after.student[name]).item() for name in ("M", "R")}, info

    (plain, info), (scaled, other) = gradient(), gradient(**settings)
    assert plain["M"] != plain["R"]
    if "normalise" in settings:
        factor = 1 / info.teacher_term.item() ** 0.5
        np.testing.assert_allclose([scaled[n] / plain[n] for n in ("M", "R")], factor, rtol=1e-3)
        np.testing.assert_allclose(other.loss, factor * info.loss, rtol=1e-4)
    else:
        np.testing.assert_allclose(other.loss, 0.8 * (other.teacher_term - other.auxiliary_term), rtol=1e-5)


def test_a_roll_out_of_one_answer_is_the_bridge_to_it():
    """Where G gives the same x_0 everywhere, x_{t_n} ~ q(x_{t_n} | x_0, x_T)."""

    def denoise(params, x_t, t, x_T=None, cond=None, z=None):
        return jnp.full_like(x_t, 3.0)

    times, batch = jnp.asarray([1.0, 0.7, 0.4]), Batch(jnp.ones((100_000, 1)))
    x = state_on_path(denoise, BRIDGE, None, batch, times, jnp.int32(2), jax.random.key(0))
    y = BRIDGE.sample(jax.random.key(1), jnp.full_like(x, 3.0), batch.x_T, jnp.full(100_000, 0.4))
    np.testing.assert_allclose([x.mean(), x.std()], [y.mean(), y.std()], atol=0.01)
