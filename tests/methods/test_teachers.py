"""Several teachers in the place of one."""

import gaussian
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ibmd_jax.bridges import I2SB
from ibmd_jax.core.types import Batch
from ibmd_jax.methods import by_label, ensemble, ibmd

BRIDGE = I2SB()
ONE = gaussian.ONE_D
DENOISE = gaussian.make_denoise(BRIDGE, ONE.S)
OTHER = {"M": 0.5 * ONE.params["M"], "R": 1.2 * ONE.params["R"]}


def student_gradient(teacher_denoise, teachers):
    """The step of plain gradient descent of the student."""
    settings = {"auxiliary_updates": 1, "noise_channels": 1, "teacher_denoise": teacher_denoise}
    m = ibmd(DENOISE, BRIDGE, optax.sgd(1.0), optax.sgd(0.1), **settings)
    start = {"M": 0.3 * ONE.params["M"], "R": 0.2 * ONE.params["R"]}
    state = m.init((start, jax.tree.map(jnp.copy, start)))
    x_T = gaussian.draw_x_T(ONE, jax.random.key(9), 64 * m.batches)
    with jax.disable_jit():  # XLA would fuse, and round, the two in other ways
        after, _ = m.step(state, teachers, Batch(x_T), jax.random.key(0))
    return jax.tree.map(lambda a, b: a - b, after.student, state.student)


def test_two_equal_teachers_give_exactly_the_gradient_of_one():
    single = student_gradient(None, ONE.params)
    double = student_gradient(ensemble([DENOISE, DENOISE]), (ONE.params, ONE.params))
    other = student_gradient(ensemble([DENOISE, DENOISE]), (ONE.params, OTHER))
    for name in ("M", "R"):
        np.testing.assert_array_equal(single[name], double[name])
        assert abs(single[name] - other[name]) > 1e-4


def test_an_ensemble_is_the_weighted_mean():
    x_t, t = jax.random.normal(jax.random.key(0), (5, 1)), jnp.linspace(0.1, 0.9, 5)
    first, second = (DENOISE(p, x_t, t) for p in (ONE.params, OTHER))
    found = ensemble([DENOISE, DENOISE], [3.0, 1.0])((ONE.params, OTHER), x_t, t)
    np.testing.assert_allclose(found, 0.75 * first + 0.25 * second, rtol=1e-6)
    for weights in ([1.0], [1.0, 0.0], [1.0, float("inf")], ["a", "b"]):
        with pytest.raises(ValueError, match="2 teachers need as many positive weights"):
            ensemble([DENOISE, DENOISE], weights)


def test_a_label_chooses_the_teacher_of_each_example():
    x_t, t = jax.random.normal(jax.random.key(0), (5, 1)), jnp.linspace(0.1, 0.9, 5)
    label = jnp.asarray([0, 1, 1, 0, 1], jnp.int32)
    first, second = (DENOISE(p, x_t, t) for p in (ONE.params, OTHER))
    found = by_label([DENOISE, DENOISE])((ONE.params, OTHER), x_t, t, None, label)
    np.testing.assert_array_equal(found, jnp.where(label[:, None] == 0, first, second))


@pytest.mark.usefixtures("lenient")
@pytest.mark.parametrize("blind", [False, True])
def test_one_student_learns_the_tasks_of_two_teachers(blind):
    """Two couplings of the same x_T. Told the task, the student has both; blind, a mixture of their means is all that
    a linear G can reach, which depends on how the tasks are weighed: only that it lies between them is tested."""

    def denoise(params, x_t, t, x_T=None, cond=None, z=None):
        rows = jax.tree.map(lambda p: p[cond], params)
        one = jax.vmap(lambda p, x, u, n: DENOISE(p, x[None], u, None, None, None if z is None else n[None])[0])
        return one(rows, x_t, jnp.broadcast_to(t, x_t.shape[:1]), x_t if z is None else z)

    steps = 1000
    teachers = (ONE.params, OTHER)
    truth = jax.tree.map(lambda *x: jnp.stack(x), *teachers)
    start = jax.tree.map(lambda x: jnp.broadcast_to(0.5 * x[0], (3, 1, 1)), truth)
    m = ibmd(
        denoise,
        BRIDGE,
        optax.adam(optax.cosine_decay_schedule(2e-2, steps), b1=0.5),
        optax.adam(optax.cosine_decay_schedule(5e-2, 3 * steps, alpha=0.02), b1=0.0),
        auxiliary_updates=3,
        noise_channels=1,
        teacher_denoise=by_label([DENOISE, DENOISE]),
        student_label=2 if blind else None,
    )

    @jax.jit
    def train(state):
        def body(state, i):
            key = jax.random.fold_in(jax.random.key(0), i)
            x_T = gaussian.draw_x_T(ONE, jax.random.fold_in(key, 1), 512 * m.batches)
            label = jax.random.randint(jax.random.fold_in(key, 2), x_T.shape[:1], 0, 2, jnp.int32)
            return m.step(state, teachers, Batch(x_T, cond=label), key)[0], None

        return jax.lax.scan(body, state, jnp.arange(steps))[0]

    found = m.export(train(m.init((start, jax.tree.map(jnp.copy, start)))))
    if blind:
        np.testing.assert_array_equal(found["M"][:2], start["M"][:2])
        assert OTHER["M"] < found["M"][2] < ONE.params["M"]
    else:
        np.testing.assert_allclose(found["M"][:2], truth["M"], rtol=0.03)
        np.testing.assert_allclose(jnp.abs(found["R"][:2]), truth["R"], rtol=0.03)
