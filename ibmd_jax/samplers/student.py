"""The distilled generator, in one step or a few."""

from collections.abc import Callable
from typing import Any

from ibmd_jax.bridges import Bridge
from ibmd_jax.core.arrays import composite
from ibmd_jax.core.streams import normal, stream
from ibmd_jax.core.types import Array, Key
from ibmd_jax.samplers.base import Step, march, noise


def draw_z(key: Key, x_T: Array, noise_channels: int) -> Array | None:
    """The student's noise input, [B, ..., noise_channels], or None for no channels."""
    return normal(key, (*x_T.shape[:-1], noise_channels), x_T.dtype) if noise_channels else None


def one_step(
    denoise: Callable[..., Array],
    bridge: Bridge,
    key: Key,
    x_T: Array,
    *,
    noise_channels: int = 0,
    mask: Array | None = None,
    cond: Any = None,
) -> Array:
    """x_0 = G(x_T, z), z ~ N(0, I): the denoiser at t = T, once (IBMD, section 3.4).

    Args:
        x_T: [B, H, W, C]. mask: [B, H, W, 1] bool; outside it the result is x_T bit for bit.
        noise_channels: channels of z [B, H, W, noise_channels]; 0 where x_T itself is noisy.
    """
    return composite(denoise(x_T, bridge.T, x_T, cond, draw_z(key, x_T, noise_channels)), x_T, mask)


def few_step(
    denoise: Callable[..., Array],
    bridge: Bridge,
    key: Key,
    x_T: Array,
    times: Array,
    *,
    noise_channels: int = 0,
    same_z: bool = False,
    **common: Any,
) -> Any:
    """Alternates x_0 = G(x_s, s, z) and a draw of x_t ~ q(x_t | x_0, x_s), len(times) - 1 times (IBMD, section 3.5).

    Args:
        times: the student's grid, from T to 0.
        noise_channels: channels of z. same_z: one draw of z serves all evaluations; otherwise each has its own.
        See samplers/base.py for the others.
    """

    def step(D: Callable[..., Array], carry: tuple[Array], i: Step) -> tuple[tuple[Array], Array]:
        (x_s,) = carry
        x_0 = D(x_s, i.s, draw_z(stream(key if same_z else i.key, "z"), x_T, noise_channels))
        mean, std = bridge.posterior(x_0, x_s, i.s, i.t)
        return (mean + std * noise(i, x_s),), x_0

    return march(step, denoise, key, x_T, times, **common)
