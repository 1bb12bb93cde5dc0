"""A Gaussian coupling whose bridge-matching solution is known in closed form.

    x_T ~ N(0, S),   x_0 | x_T ~ N(M x_T, R R^T)

For an unconditional bridge, E[x_0 | x_t] = K(t) x_t with
    K = (a C + b V) (a^2 S + b^2 V + a b (C + C^T) + c^2 I)^-1,
    C = E[x_0 x_T^T] = M S,   V = E[x_0 x_0^T] = M S M^T + R R^T.
With z the same parameters generate: G(x_T, z) = M x_T + R z. So teacher, auxiliary and student are all {"M", "R"}, the
auxiliary's minimum is at the student's own parameters, and the truth is known.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Coupling(NamedTuple):
    """M, R, S as above, [d, d] float32."""

    M: np.ndarray
    R: np.ndarray
    S: np.ndarray

    @property
    def params(self):
        return {"M": jnp.asarray(self.M), "R": jnp.asarray(self.R)}


ONE_D = Coupling(np.float32([[0.8]]), np.float32([[0.6]]), np.float32([[1.0]]))
TWO_D = Coupling(
    np.float32([[0.7, 0.3], [-0.2, 0.5]]), np.float32([[0.6, 0.0], [0.2, 0.4]]), np.float32([[1.0, 0.3], [0.3, 0.8]])
)


def moments(params, S):
    """(C, V) of the coupling."""
    C = params["M"] @ S
    return C, C @ params["M"].T + params["R"] @ params["R"].T


def gain(bridge, params, S, t):
    """K(t) for a scalar t, and the covariance of x_t."""
    a, b, c = bridge.coeffs(t)
    C, V = moments(params, S)
    cov = a * a * S + b * b * V + a * b * (C + C.T) + c * c * jnp.eye(S.shape[0], dtype=S.dtype)
    return jnp.linalg.solve(cov, (a * C + b * V).T).T, cov


def make_denoise(bridge, S):
    S = jnp.asarray(S)

    def denoise(params, x_t, t, x_T=None, cond=None, z=None):
        if z is not None:
            return x_t @ params["M"].T + z @ params["R"].T
        t = jnp.broadcast_to(jnp.asarray(t, x_t.dtype), x_t.shape[:1])
        K = jax.vmap(lambda u: gain(bridge, params, S, u)[0])(t)
        return jnp.einsum("bij,bj->bi", K, x_t)

    return denoise


def make_conditional_denoise(bridge, S):
    """The same for a network that also sees x_T: E[x_0 | x_t, x_T] = m + b V (b^2 V + c^2)^-1 (x_t - a x_T - b m), with
    m = M x_T, V = R R^T."""

    def denoise(params, x_t, t, x_T=None, cond=None, z=None):
        m = x_T @ params["M"].T
        if z is not None:
            return m + z @ params["R"].T
        V, one = params["R"] @ params["R"].T, jnp.eye(len(S), dtype=x_t.dtype)

        def estimate(x_t, t, x_T, m):
            a, b, c = bridge.coeffs(t)
            return m + b * V @ jnp.linalg.solve(b * b * V + c * c * one, x_t - a * x_T - b * m)

        return jax.vmap(estimate)(x_t, jnp.broadcast_to(t, x_t.shape[:1]), x_T, m)

    return denoise


def exact_error(bridge, denoiser, generator, S, t):
    """E ||K_denoiser(t) x_t - x_0||^2 / d under the generator's coupling, for a scalar t."""
    K, _ = gain(bridge, denoiser, S, t)
    C, V = moments(generator, S)
    a, b, _ = bridge.coeffs(t)
    _, cov = gain(bridge, generator, S, t)
    cross = (a * C + b * V) @ K.T  # E[x_0 x_t^T] K^T
    return (jnp.trace(K @ cov @ K.T) - 2 * jnp.trace(cross) + jnp.trace(V)) / S.shape[0]


def draw_x_T(coupling, key, n):
    return jax.random.normal(key, (n, len(coupling.S))) @ jnp.asarray(np.linalg.cholesky(coupling.S).T)
