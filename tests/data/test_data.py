import itertools
import multiprocessing
import os
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ibmd_jax.core.errors import UserError
from ibmd_jax.corruptions import CORRUPTIONS
from ibmd_jax.data.emoji import emoji, index, tiles
from ibmd_jax.data.pipeline import ahead, examples, make_corrupt
from ibmd_jax.data.source import Options


def images(split, size=32, where=""):
    source = emoji(where, split, Options(size))
    return np.stack([source[i]["x_0"] for i in range(len(source))])


def test_the_demo_set_has_its_published_sizes_and_splits():
    assert images("train").shape == (3388, 32, 32, 3)
    assert images("test").shape == (398, 32, 32, 3)
    assert images("test", 64).shape == (398, 64, 64, 3)
    bases = {split: {e["base"] for e in index() if e["split"] == split} for split in ("train", "test")}
    assert not bases["train"] & bases["test"]
    with pytest.raises(UserError, match="unknown split"):
        emoji("", "validation", Options(32))
    with pytest.raises(UserError, match=r"config.data.size = 48: the emoji come in 16, 32, 64"):
        emoji("", "test", Options(48))


@pytest.mark.parametrize("style", ["noto", "twemoji"])
def test_every_tile_is_a_drawing_on_white(style):
    drawings = tiles(style, 32)
    assert (drawings.reshape(len(drawings), -1).std(1) > 0).all()
    grinning = drawings[0]
    assert (grinning[0, 0] == 255).all()
    red, green, blue = grinning[20, 4].astype(int)  # a yellow face
    assert min(red, green) > blue + 40


def take(steps, **settings):
    source = emoji("", "train", Options(32))
    stream = examples(source, **{"seed": 3, "batch_size": 8, "flip": True, **settings})
    return [(example["x_0"], numbers) for example, numbers in itertools.islice(stream, steps)]


def test_a_run_resumes_at_any_step():
    whole = take(6)
    for start in (1, 4):
        for (a, i), (b, j) in zip(whole[start:], take(6 - start, start_step=start), strict=True):
            np.testing.assert_array_equal(a, b)
            np.testing.assert_array_equal(i, j)


def test_worker_processes_change_nothing_and_leave_signals_to_the_run():
    """Which needs batches until it has stopped; more are taken here than the workers had ready."""
    stream = examples(emoji("", "train", Options(32)), seed=3, batch_size=8, flip=True, start_step=2, workers=2)
    for number, (ours, numbers) in enumerate(take(20, start_step=2)):
        theirs, j = next(stream)
        np.testing.assert_array_equal(numbers, j)
        np.testing.assert_array_equal(ours, theirs["x_0"])
        if number == 1:
            workers = multiprocessing.active_children()
            assert len(workers) == 2
            for worker in workers:
                os.kill(worker.pid, signal.SIGTERM)


KILLED = """
import multiprocessing, os, signal
from ibmd_jax.data.emoji import emoji
from ibmd_jax.data.pipeline import examples
from ibmd_jax.data.source import Options
if __name__ == "__main__":
    stream = examples(emoji("", "train", Options(32)), seed=3, batch_size=8, workers=2)
    next(stream)
    print(len(multiprocessing.active_children()) > 0, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_worker_processes_end_with_a_run_that_is_killed(tmp_path):
    """They have its output, which does not end before they do."""
    (tmp_path / "run.py").write_text(KILLED)
    done = subprocess.run([sys.executable, tmp_path / "run.py"], stdout=subprocess.PIPE, text=True, timeout=60)
    assert (done.stdout, done.returncode) == ("True\n", -signal.SIGKILL)


def test_a_few_batches_are_asked_for_ahead():
    asked = []
    stream = ahead((asked.append(i) or i for i in range(5)), 2)
    assert [(next(stream), len(asked)) for _ in range(5)] == [(0, 3), (1, 4), (2, 5), (3, 5), (4, 5)]
    assert next(stream, None) is None


@pytest.mark.parametrize("processes", [2, 4])
def test_global_batches_do_not_depend_on_the_number_of_processes(processes):
    parts = [take(3, process=p, processes=processes) for p in range(processes)]
    for step, (images, numbers) in enumerate(take(3)):
        np.testing.assert_array_equal(np.concatenate([p[step][1] for p in parts]), numbers)
        np.testing.assert_array_equal(np.concatenate([p[step][0] for p in parts]), images)


@pytest.mark.parametrize("batch_size", [12, 8, 24], ids=["a batch", "across batches", "two in a batch"])
def test_an_epoch_holds_every_image_once_and_the_next_is_shuffled_anew(batch_size):
    tiny = [{"x_0": np.full((1, 1, 1), i, np.uint8)} for i in range(12)]
    orders = {}
    for seed in (0, 1):
        stream = examples(tiny, seed=seed, batch_size=batch_size)
        seen = np.concatenate([next(stream)[0]["x_0"].ravel() for _ in range(24 // batch_size)])
        orders |= {(seed, epoch): tuple(part) for epoch, part in enumerate(np.split(seen, 2))}
    assert all(sorted(order) == list(range(12)) for order in orders.values())
    assert len(set(orders.values())) == 4


def test_flips_mirror_about_half_of_the_images():
    plain, flipped = (np.concatenate([x for x, _ in take(40, flip=f)]) for f in (False, True))
    same = (plain == flipped).all((1, 2, 3))
    np.testing.assert_array_equal(flipped[~same], plain[~same][:, :, ::-1])
    assert 0.3 < same.mean() < 0.7


def test_an_example_is_corrupted_by_its_number_alone():
    corrupt = make_corrupt(CORRUPTIONS["inpaint-center"], 0, "train")
    x, numbers = images("test")[:4], np.arange(4)
    batch = corrupt({"x_0": x}, numbers)
    np.testing.assert_array_equal(corrupt({"x_0": x[2:]}, numbers[2:]).x_T, batch.x_T[2:])
    np.testing.assert_allclose(batch.x_0, x.astype(np.float32) / 127.5 - 1, atol=1e-6)
    assert (corrupt({"x_0": x}, numbers + 4).x_T != batch.x_T).any()
    other = make_corrupt(CORRUPTIONS["inpaint-center"], 0, "test")({"x_0": x}, numbers)
    assert (other.x_T != batch.x_T).any()


def test_corruption_keeps_the_sharding_of_the_batch():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    x, numbers = (jax.device_put(jnp.asarray(x), sharding) for x in (images("test")[:8], np.arange(8, dtype=np.int32)))
    batch = make_corrupt(CORRUPTIONS["inpaint-center"], 0, "train")({"x_0": x}, numbers)
    assert batch.x_T.sharding.is_equivalent_to(sharding, 4)
