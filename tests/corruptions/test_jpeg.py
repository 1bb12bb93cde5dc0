import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy.fft import dctn, idctn

from ibmd_jax.core.arrays import from_uint8, to_uint8
from ibmd_jax.corruptions.jpeg import jpeg, tables


def scene(h, w, channels):
    """A smooth picture with edges and some grain, float32 [h, w, channels]."""
    rng = np.random.default_rng(0)
    i, j = np.mgrid[:h, :w]
    waves = [np.sin(i / (5 + 3 * c) + j / (9 - 2 * c)) for c in range(channels)]
    edges = [np.sign(np.sin(i * j / (50 + 9 * c))) for c in range(channels)]
    x = 0.5 * np.stack(waves, -1) + 0.3 * np.stack(edges, -1) + 0.08 * rng.normal(size=(h, w, channels))
    return np.clip(x, -1, 1).astype(np.float32)


def blockwise(plane, table):
    """A plane coded and decoded, one block after another, in float64."""
    out = np.zeros_like(plane)
    for i in range(0, plane.shape[0], 8):
        for j in range(0, plane.shape[1], 8):
            block = np.s_[i : i + 8, j : j + 8]
            out[block] = idctn(np.rint(dctn(plane[block], norm="ortho") / table) * table, norm="ortho")
    return out


def reference(x, quality):
    h, w, channels = x.shape
    v = (np.pad(x.astype(np.float64), ((0, -h % 16), (0, -w % 16), (0, 0)), "edge") + 1) / 2 * 255
    luma, chroma = tables(quality)
    if channels == 1:
        v = blockwise(v[..., 0] - 128, luma)[..., None] + 128
    else:
        r, g, b = v[..., 0], v[..., 1], v[..., 2]
        y = blockwise(0.299 * r + 0.587 * g + 0.114 * b - 128, luma) + 128
        cb = blockwise((-0.1687 * r - 0.3313 * g + 0.5 * b)[::2, ::2], chroma).repeat(2, 0).repeat(2, 1)
        cr = blockwise((0.5 * r - 0.4187 * g - 0.0813 * b)[::2, ::2], chroma).repeat(2, 0).repeat(2, 1)
        red, green = y + 1.40198758 * cr, y - 0.344113281 * cb - 0.714103821 * cr
        v = np.stack([red - 3.682e-5 * cb, green, y + 1.77197812 * cb - 1.3458e-4 * cr], -1)
    return v[:h, :w] / 255 * 2 - 1


@pytest.mark.parametrize("quality", [10, 50, 90])
@pytest.mark.parametrize("shape", [(256, 256, 3), (24, 40, 3), (37, 51, 3), (64, 32, 1)])
def test_the_idealised_one_is_its_definition(shape, quality):
    x = scene(*shape)
    np.testing.assert_allclose(jpeg(None, jnp.asarray(x), quality).x_T, reference(x, quality), atol=3e-6)


def test_the_tables_are_those_of_libjpeg_at_every_quality():
    for quality in range(1, 101):
        file = io.BytesIO()
        Image.new("RGB", (16, 16)).save(file, "JPEG", quality=quality)
        for ours, theirs in zip(tables(quality, whole=True), Image.open(file).quantization.values(), strict=True):
            np.testing.assert_array_equal(ours.ravel(), theirs)


@pytest.mark.parametrize("quality", [5, 30, 95])
@pytest.mark.parametrize("shape", [(256, 256, 3), (24, 40, 3), (37, 51, 3), (40, 30, 1)])
def test_libjpeg_is_what_pillow_does_to_a_file(shape, quality):
    pixels = to_uint8(scene(*shape))
    picture, file = Image.fromarray(pixels[..., 0] if shape[2] == 1 else pixels), io.BytesIO()
    picture.save(file, "JPEG", quality=quality, subsampling="4:2:0")
    expected = np.asarray(Image.open(file), np.float32).reshape(shape)
    x_T = jax.jit(lambda x: jpeg(None, x, quality, libjpeg=True).x_T)(from_uint8(pixels))
    difference = np.abs(np.asarray(to_uint8(x_T), np.float32) - expected)
    print(f"{shape} quality {quality}: mean {difference.mean():.3f} max {difference.max():.0f} of 255")
    assert difference.mean() < 0.5
    np.testing.assert_allclose(x_T, from_uint8(to_uint8(x_T)), atol=1e-6)


def test_libjpeg_sees_bytes():
    x_0 = scene(32, 32, 3)
    x_T, of_bytes = (jpeg(None, jnp.asarray(x), 95, libjpeg=True).x_T for x in (x_0, from_uint8(to_uint8(x_0))))
    np.testing.assert_array_equal(x_T, of_bytes)


def test_wrong_images_and_qualities_are_refused():
    with pytest.raises(ValueError, match="1 or 3 channels, not 4"):
        jpeg(None, jnp.zeros((16, 16, 4)))
    for quality in (0, 101):
        with pytest.raises(ValueError, match=f"from 1 to 100, not {quality}"):
            jpeg(None, jnp.zeros((16, 16, 3)), quality)
