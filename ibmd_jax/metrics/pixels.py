"""PSNR and SSIM of images [B, H, W, C] float32 in [-1, 1]; values outside are clipped, as a file would clip them."""

import jax
import jax.numpy as jnp

from ibmd_jax.core.types import Array


def _unit(x: Array) -> Array:
    return (jnp.clip(x, -1, 1) + 1) / 2


def psnr(x: Array, y: Array) -> Array:
    """Peak signal-to-noise ratio in dB for a data range of 1 on [0, 1]: -10 log10 MSE, at most 100. Returns [B].

    A mean over images is not to be infinite for one that is restored exactly, as where a mask is empty.
    """
    return -10 * jnp.log10(jnp.maximum(jnp.square(_unit(x) - _unit(y)).mean((1, 2, 3)), 1e-10))


def ssim(x: Array, y: Array, window: int = 11, sigma: float = 1.5) -> Array:
    """Structural similarity (Wang et al. 2004, equation 13): Gaussian window, K = (0.01, 0.03), mean over valid
    positions and channels. Returns [B]. Raises ValueError for images smaller than the window.
    """
    if min(x.shape[1:3]) < window:
        raise ValueError(f"ssim needs images of at least {window} x {window} pixels, got {x.shape[1]} x {x.shape[2]}")
    u = jnp.arange(window, dtype=x.dtype) - (window - 1) / 2
    g = jnp.exp(-jnp.square(u) / (2 * sigma**2))
    g = g / g.sum()
    kernel = jnp.tile((g[:, None] * g[None, :])[:, :, None, None], (1, 1, 1, x.shape[-1]))

    def mean(v: Array) -> Array:
        return jax.lax.conv_general_dilated(
            v,
            kernel,
            (1, 1),
            "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=v.shape[-1],
            precision=jax.lax.Precision.HIGHEST,  # accelerators would round what is subtracted below
        )

    x, y = _unit(x), _unit(y)
    mx, my = mean(x), mean(y)
    vx, vy, cov = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    c1, c2 = 0.01**2, 0.03**2
    return ((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))).mean((1, 2, 3))
