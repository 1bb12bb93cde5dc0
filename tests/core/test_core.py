import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ibmd_jax.core.arrays import (
    _examine,
    composite,
    ema_update,
    examine,
    expand,
    fingerprint,
    from_uint8,
    squared_error,
    to_uint8,
)
from ibmd_jax.core.errors import UserError, lookup, named
from ibmd_jax.core.streams import first_key, normal, step_key, stream


def test_squared_error_counts_masked_elements_only():
    x = jnp.zeros((2, 2, 2, 3))
    y = jnp.arange(24, dtype=jnp.float32).reshape(2, 2, 2, 3)
    mask = jnp.zeros((2, 2, 2, 1), bool).at[0, 0, 0, 0].set(True)
    np.testing.assert_allclose(squared_error(x, y, mask), [(0 + 1 + 4) / 3, 0])
    np.testing.assert_allclose(squared_error(x, y)[0], np.mean(np.arange(12.0) ** 2))


def test_composite_keeps_the_known_bits():
    x, known = jnp.full((1, 2, 1, 1), jnp.nan), jnp.array([-0.0, 3.0]).reshape(1, 2, 1, 1)
    out = composite(x, known, jnp.array([False, True]).reshape(1, 2, 1, 1))
    assert np.signbit(out[0, 0, 0, 0])
    assert out[0, 0, 0, 0] == 0
    assert np.isnan(out[0, 1, 0, 0])


def test_ema_follows_torch_emas_warm_up():
    average, expected = {"p": jnp.zeros(())}, 0.0
    for n in range(1, 200):
        average = ema_update(average, {"p": jnp.float32(n)}, jnp.int32(n), 0.9)
        d = min(0.9, (1 + n) / (10 + n))
        expected = d * expected + (1 - d) * n
    np.testing.assert_allclose(average["p"], expected, rtol=1e-5)


def test_fingerprint_sees_every_change():
    x = jax.random.normal(jax.random.key(0), (5, 7))
    base = fingerprint({"a": x, "b": jnp.arange(3)})
    assert fingerprint({"a": x + 0, "b": jnp.arange(3)}) == base
    assert fingerprint({"a": x.at[2, 3].multiply(-1), "b": jnp.arange(3)}) != base
    assert fingerprint({"a": x.at[jnp.array([0, 1])].set(x[jnp.array([1, 0])]), "b": jnp.arange(3)}) != base
    other = x.at[0, 1].set(x[1, 0]).at[1, 0].set(x[0, 1])
    assert fingerprint({"a": other, "b": jnp.arange(3)}) != base


@pytest.mark.parametrize("axis", [0, 1])
def test_fingerprint_does_not_depend_on_sharding_and_gathers_nothing(axis):
    x = jax.random.normal(jax.random.key(0), (8, 4))
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec(*[None] * axis, "data")
    split = jax.device_put(x, jax.sharding.NamedSharding(mesh, spec))
    assert fingerprint(split) == fingerprint(x)
    assert "f32[8,4]" not in _examine.lower(split).compile().as_text()


@pytest.mark.parametrize("value", [jnp.nan, -jnp.inf])
def test_examine_finds_what_is_not_finite(value):
    x = jnp.ones((2, 3))
    assert examine({"a": x, "b": jnp.arange(3)}) == (fingerprint({"a": x, "b": jnp.arange(3)}), True)
    assert not examine({"a": x.at[1, 2].set(value), "b": jnp.arange(3)})[1]


def test_expand_broadcasts_times_over_images():
    x = jnp.ones((3, 2, 2, 1))
    assert expand(jnp.ones((3,)), x).shape == (3, 1, 1, 1)
    assert expand(jnp.float32(2), x).shape == (1, 1, 1, 1)


def test_uint8_round_trip():
    x = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    np.testing.assert_array_equal(to_uint8(from_uint8(x)), x)
    assert to_uint8(np.array([-3.0, 3.0])).tolist() == [0, 255]


def test_each_example_has_its_own_key():
    keys = jax.random.split(jax.random.key(0), 6)
    x = normal(stream(keys, "z"), (6, 3, 2))
    np.testing.assert_array_equal(x[2:4], normal(stream(keys[2:4], "z"), (2, 3, 2)))
    np.testing.assert_array_equal(x[2], jax.random.normal(stream(keys[2], "z"), (3, 2)))
    old = jax.random.PRNGKey(0)  # one key, though an array of two numbers
    np.testing.assert_array_equal(normal(old, (2, 3)), jax.random.normal(old, (2, 3)))
    np.testing.assert_array_equal(first_key(old), old)
    assert first_key(keys) == keys[0]


def test_streams_differ_by_name_and_step():
    key = jax.random.key(0)
    keys = [stream(key, "a"), stream(key, "b"), step_key(key, "a", 0), step_key(key, "a", 1), step_key(key, "b", 0)]
    assert len({tuple(np.asarray(jax.random.key_data(k)).tolist()) for k in keys}) == len(keys)
    # Fixed for ever: a resumed run of an older version must draw the same numbers.
    assert np.asarray(jax.random.key_data(stream(key, "teacher"))).tolist() == [1381669686, 1443336698]


def test_lookup_names_the_nearest_entry():
    assert lookup({"center": 1}, "center", "mask") == 1
    with pytest.raises(UserError, match=r"unknown mask 'centre': choose one of center, free. Did you mean 'center'\?"):
        lookup({"center": 1, "free": 2}, "centre", "mask")


def test_a_name_may_come_with_settings():
    for spec in ({"name": "jpeg", "quality": 7}, "{'name': 'jpeg', 'quality': 7}"):
        assert named(spec, "corruption") == ("jpeg", {"quality": 7})
    assert named("jpeg-5", "corruption") == ("jpeg-5", {})
    for spec in (5, True, ["jpeg"], {"quality": 7}, {"name": 7}, "{'name': 'jpeg'", "{'jpeg'}", "{jpeg}"):
        with pytest.raises(UserError, match=r"corruption .*: give a name, or {'name': ..., a setting: ...}"):
            named(spec, "corruption")
