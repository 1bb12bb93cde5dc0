# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Bridges in the plane
#
# The whole library on points instead of images: a swiss roll $x_T$ is turned into two moons $x_0$ by every bridge, by
# every sampler, and at last by a generator that needs one network evaluation. A minute on two CPU cores.
#
# Install: clone the repository and `pip install -e .[dev]` in it.

# %%
import functools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

from ibmd_jax import methods
from ibmd_jax.bridges import DDBMVE, DDBMVP, I2SB, Brownian, Flow, I2SBTable, OtOde, diffusion
from ibmd_jax.bridges import parametrisations as P
from ibmd_jax.bridges.times import TIME_GRIDS, uniform_grid
from ibmd_jax.core.types import Batch
from ibmd_jax.networks.adapters import from_linen
from ibmd_jax.networks.denoiser import make_denoiser
from ibmd_jax.networks.generator import with_new_inputs
from ibmd_jax.networks.mlp import MLP
from ibmd_jax.samplers import SAMPLERS, ancestral

# %% [markdown]
# ## Pairs of points
# How far along the roll a point is says how far along a moon its partner is, but not on which moon. So
# $p(x_0 \mid x_T)$ has two modes, and a model that answers with the mean puts its points where no data are.


# %%
def draw(key, n):
    """Pairs (x_0, x_T), each [n, 2], of standard deviation about 1."""
    k_part, k_side, k_0, k_T = jax.random.split(key, 4)
    part = jax.random.uniform(k_part, (n, 1))
    angle = 1.5 * jnp.pi * (1 + 2 * part)
    roll = angle / 7 * jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=1)
    moon = jnp.concatenate([jnp.cos(jnp.pi * part) - 0.5, jnp.sin(jnp.pi * part) - 0.25], axis=1)
    side = jnp.where(jax.random.bernoulli(k_side, shape=(n, 1)), 1.4, -1.4)
    return side * moon + 0.06 * jax.random.normal(k_0, (n, 2)), roll + 0.04 * jax.random.normal(k_T, (n, 2))


def energy_distance(x, y):
    """Twice the mean distance between x and y, less those within x and within y; 0 for equal distributions."""

    def mean_distance(a, b):
        return jnp.sqrt(jnp.square(a[:, None] - b[None]).sum(-1) + 1e-12).mean()

    return float(2 * mean_distance(x, y) - mean_distance(x, x) - mean_distance(y, y))


N = 1500  # points in pictures and distances
MOONS, ROLL = draw(jax.random.key(10), N)
NOISE = jax.random.normal(jax.random.key(12), (N, 2))


def quality(x_0, x_T=ROLL):
    """Energy distances to the data: of the points x_0, and of the pairs (x_T, x_0), which tells couplings apart."""
    pairs, truth = jnp.concatenate([x_T, x_0], axis=1), jnp.concatenate([ROLL, MOONS], axis=1)
    return energy_distance(x_0, MOONS), energy_distance(pairs, truth)


for label, (x_0, x_T) in {"other draws": draw(jax.random.key(13), N), "wrong pairs": (MOONS[::-1], ROLL)}.items():
    print("{:18} energy distance of points {:.4f}, of pairs {:.4f}".format(label, *quality(x_0, x_T)))


def show(axis, points, title, color="tab:blue"):
    axis.scatter(*np.asarray(points).T, s=1, color=color)
    axis.set(title=title, xlim=(-3, 3), ylim=(-3, 3), xticks=[], yticks=[], aspect="equal")


def show_paths(axis, path, title):
    """path: [steps, B, 2]."""
    axis.plot(*np.asarray(path[:, :60]).transpose(2, 0, 1), color="tab:gray", lw=0.4)
    show(axis, path[-1], title)


# %% [markdown]
# ## Every bridge
# One small network for each. Those of stochastic bridges see $x_T$ and learn $E[x_0 \mid x_t, x_T]$. The others do not:
# diffusion models and the flow start from noise, which says nothing of $x_0$, and along an ODE bridge $x_t$ and $x_T$
# together would give $x_0$ away. `data_moments` sets the preconditioning.

# %%
BRIDGES = {
    "Brownian(0.5)": Brownian(0.5),
    "I2SB": I2SB(),
    "I2SB, 1000-step table": I2SBTable(),
    "I2SB, ODE": OtOde(I2SB()),
    "DDBM VP": DDBMVP(),
    "DDBM VE, sigma 3": DDBMVE(3.0),
    "flow": Flow(),
    "VP linear": diffusion.Linear(),
    "VP cosine": diffusion.Cosine(),
    "VP sigmoid": diffusion.Sigmoid(),
    "VE, sigma 10": diffusion.VE(0.01, 10.0),
    "EDM, sigma 10": diffusion.EDM(10.0),
}
NETWORK = from_linen(MLP(out_channels=2, width=96, depth=2))
STEPS, BATCH = 700, 256


def starts_from_noise(bridge):
    return isinstance(bridge, diffusion.Diffusion | Flow)


def draw_pairs(bridge, key):
    k_data, k_noise = jax.random.split(key)
    x_0, x_T = draw(k_data, BATCH)
    if starts_from_noise(bridge):
        x_T = bridge.sigma(jnp.float32(bridge.T)) * jax.random.normal(k_noise, (BATCH, 2))
    return Batch(x_T, x_0)


def train_teacher(bridge, conditional):
    pairs = draw_pairs(bridge, jax.random.key(0))
    parametrisation = functools.partial(P.ddbm, **P.data_moments(pairs.x_0, pairs.x_T))
    denoise = make_denoiser(NETWORK, bridge, parametrisation, conditional)
    method = methods.teacher(
        denoise,
        bridge,
        optax.adam(optax.cosine_decay_schedule(3e-3, STEPS)),
        weight=P.native_weight(parametrisation),
        t_min=1e-3 * bridge.T,
    )
    x = jnp.zeros((1, 4 if conditional else 2))

    @jax.jit
    def train(key):
        def body(i, state):
            k_data, k_step = jax.random.split(jax.random.fold_in(key, i))
            return method.step(state, None, draw_pairs(bridge, k_data), k_step)[0]

        return jax.lax.fori_loop(0, STEPS, body, method.init(NETWORK.init(key, x, jnp.zeros(1))))

    params = method.export(train(jax.random.key(1)))
    return denoise, params


def bind(denoise, params):
    return lambda x_t, t, x_T, cond: denoise(params, x_t, t, x_T)


teachers = {}
power_grid = jnp.linspace(1, 0, 31) ** 3
figure, axes = plt.subplots(3, 4, figsize=(12, 9.5))
for axis, (name, bridge) in zip(axes.flat, BRIDGES.items(), strict=True):
    teachers[name] = train_teacher(bridge, conditional=not (starts_from_noise(bridge) or bridge.deterministic))
    start = bridge.sigma(jnp.float32(bridge.T)) * NOISE if starts_from_noise(bridge) else ROLL
    times = power_grid * bridge.T
    sample = jax.jit(functools.partial(ancestral, bind(*teachers[name]), bridge, times=times, trajectory=True))
    x_0, path = sample(jax.random.key(2), start)
    distance = energy_distance(x_0, MOONS)
    print(f"{name:22} 30 ancestral steps, energy distance of points {distance:.4f}")
    assert distance < 0.1, name
    show_paths(axis, path.x, f"{name}: {distance:.3f}")
figure.suptitle("Paths of every bridge, 30 ancestral steps; energy distance to the moons")
figure.tight_layout()
plt.show()

# %% [markdown]
# ## Every sampler
# The same DDBM teacher, each sampler on the time grid it was published with. With few network evaluations (NFE) they
# differ.

# %%
bridge, teacher = BRIDGES["DDBM VP"], bind(*teachers["DDBM VP"])
VARIANTS = {
    "ancestral": ("ancestral", {}),
    "Euler-Maruyama": ("euler_maruyama", {}),
    "DBIM, eta 1": ("dbim", {"eta": 1.0}),
    "DBIM, eta 0": ("dbim", {}),
    "DBIM, order 2": ("dbim_high_order", {"order": 2}),
    "DBIM, order 3": ("dbim_high_order", {"order": 3}),
    "DDBM's Heun, churn 0.33": ("heun", {}),
    "probability flow, Heun": ("probability_flow", {}),
}
figure, axes = plt.subplots(2, 4, figsize=(12, 6.5))
print(f"{'of pairs, at NFE about':32}" + "".join(f"{n:>9}" for n in (6, 24, 48)))
for axis, (label, (name, settings)) in zip(axes.flat, VARIANTS.items(), strict=True):
    entry, row = SAMPLERS[name], []
    for nfe in (6, 24, 48):
        grids = (TIME_GRIDS[entry.grid](n, bridge.T) for n in range(nfe, 0, -1))
        times = next(g for g in grids if entry.evaluations(bridge, g, **settings) <= nfe)
        sample = functools.partial(entry.sample, teacher, bridge, times=times, trajectory=True, **settings)
        x_0, path = jax.jit(sample)(jax.random.key(2), ROLL)
        row.append(quality(x_0)[1])
        if nfe == 24:
            show_paths(axis, path.x, label)
    print(f"{label:32}" + "".join(f"{d:9.4f}" for d in row))
    assert row[-1] < 0.006, label
figure.suptitle("DDBM VP: paths of every sampler at about 24 network evaluations")
figure.tight_layout()
plt.show()

# %% [markdown]
# ## Distillation
# IBMD turns this DDBM teacher into a generator $x_0 = G(x_T, z)$ that needs one network evaluation, from $x_T$ alone.
# It starts as the teacher at $t = T$, which answers with the mean of the two moons; the weights of $z$ start at 0.
# These optimisers do for points; for images of such a teacher `ibmd_jax/methods/README.md` has others.

# %%
denoise, frozen = teachers["DDBM VP"]
DISTILL, NOISE_CHANNELS = 1000, 2
ibmd = methods.ibmd(
    denoise,
    bridge,
    optax.adam(optax.cosine_decay_schedule(1e-3, DISTILL), b1=0.0),
    optax.adam(3e-3, b1=0.0),
    auxiliary_updates=4,
    noise_channels=NOISE_CHANNELS,
)
fresh = NETWORK.init(jax.random.key(3), jnp.zeros((1, 4)), jnp.zeros(1), None, jnp.zeros((1, NOISE_CHANNELS)))


@jax.jit
def distil(student, teacher, key):
    def body(i, state):
        k_data, k_step = jax.random.split(jax.random.fold_in(key, i))
        _, x_T = draw(k_data, ibmd.batches * BATCH)
        return ibmd.step(state, teacher, Batch(x_T), k_step)[0]

    return ibmd.export(jax.lax.fori_loop(0, DISTILL, body, ibmd.init((student, teacher))))


student = distil(with_new_inputs(frozen, fresh), frozen, jax.random.key(4))

# %%
results = {"student, 1 NFE": ibmd.sample(student, jax.random.key(5), Batch(ROLL))}
for steps in (1, 2, 200):
    sample = jax.jit(functools.partial(ancestral, teacher, bridge, times=uniform_grid(steps)))
    results[f"teacher, {steps} NFE"] = sample(jax.random.key(6), ROLL)

figure, axes = plt.subplots(1, 5, figsize=(15, 3.4))
for axis, (label, x_0) in zip(axes, {**results, "data": MOONS}.items(), strict=True):
    axis.plot(*np.stack([ROLL[:80], x_0[:80]]).transpose(2, 0, 1), color="tab:gray", lw=0.4)
    show(axis, ROLL, "", "tab:orange")
    show(axis, x_0, label)
    print("{:18} energy distance of points {:.4f}, of pairs {:.4f}".format(label, *quality(x_0)))
figure.suptitle("The coupling: from orange to blue along the lines")
figure.tight_layout()
plt.show()

for new, old in zip(quality(results["student, 1 NFE"]), quality(results["teacher, 2 NFE"]), strict=True):
    assert new < 0.5 * old
