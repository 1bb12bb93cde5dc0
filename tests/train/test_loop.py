"""The loop with a toy method: resume, signals, divergence, damaged checkpoints."""

import contextlib
import itertools
import os
import re
import resource
import signal
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray
from tensorflow.errors import ResourceExhaustedError

from ibmd_jax.core.errors import UserError
from ibmd_jax.core.types import Batch
from ibmd_jax.methods import Method
from ibmd_jax.train.checkpoint import BAD, GOOD, Checkpoints, NotNow, export_params, load_params
from ibmd_jax.train.loop import NotFinite, Schedule, Stopped, fit, mean_info
from ibmd_jax.train.pictures import expendable, save_curves, save_grid
from ibmd_jax.train.processes import say
from ibmd_jax.train.sharding import batch_sharding, make_mesh

SCHEDULE = Schedule(log_every=2, save_every=4, picture_every=4, keep=3)
ABSTRACT = jax.ShapeDtypeStruct((3,), jnp.float32)


class State(NamedTuple):
    w: jax.Array


class Info(NamedTuple):
    loss: jax.Array


def toy(explode_at=None):
    """A random walk driven by the batch and the key; its loss is not finite at one step."""

    def step(state, frozen, batch, key):
        w = state.w * 0.9 + batch.x_T.mean() + 0.1 * jax.random.normal(key, (3,))
        bad = jnp.bool_(False) if explode_at is None else batch.x_T[0, 0] == explode_at
        return State(w), Info(jnp.where(bad, jnp.nan, w.sum()))

    return Method(lambda start: State(start), step, None, lambda state: {"w": state.w}, {})


def batches(step):
    sharding = batch_sharding(make_mesh())
    return (Batch(jax.device_put(jnp.full((4, 1), float(i)), sharding)) for i in itertools.count(step))


def run(folder, steps=10, method=None, identity=None, size=3, data=batches, schedule=SCHEDULE, seed=0, **settings):
    return fit(
        "toy",
        method or toy(),
        lambda frozen, given: State(jnp.zeros(size) if given is None else given),
        None,
        data,
        steps=steps,
        seed=seed,
        folder=folder,
        mesh=make_mesh(),
        identity=identity or {},
        schedule=schedule,
        model={"network": {"name": "toy"}},
        **settings,
    )


def saved(folder):
    return sorted(int(p.name) for p in (folder / "checkpoints").iterdir() if p.name.isdigit())


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return np.asarray(run(tmp_path_factory.mktemp("whole"))["w"])


def test_order_pictures_and_files(tmp_path, uninterrupted):
    seen = []

    def picture(params, label):
        seen.append((label, np.asarray(params["w"]).copy()))
        return {"mean": float(params["w"].mean())}

    params = run(tmp_path, picture=picture, also_export={"raw": lambda state: {"twice": 2 * state.w}})
    np.testing.assert_array_equal(params["w"], uninterrupted)
    assert [label for label, _ in seen] == ["toy_000000", "toy_000004", "toy_000008", "toy_000010"]
    np.testing.assert_array_equal(seen[0][1], 0)  # the old state is drawn, before the step
    np.testing.assert_array_equal(seen[-1][1], uninterrupted)
    assert saved(tmp_path) == [4, 8, 10]
    exported, meta = load_params(tmp_path / "export", {"w": ABSTRACT})
    np.testing.assert_array_equal(exported["w"], uninterrupted)
    assert (meta["step"], meta["stage"], meta["model"]) == (10, "toy", {"network": {"name": "toy"}})
    raw, _ = load_params(tmp_path / "raw", {"twice": ABSTRACT})
    np.testing.assert_array_equal(raw["twice"], 2 * uninterrupted)
    save_curves(tmp_path / "nothing", tmp_path / "no curves.png")
    assert not (tmp_path / "no curves.png").exists()
    save_curves(tmp_path / "events", tmp_path / "curves.png")
    assert Image.open(tmp_path / "curves.png").width > 500
    logged = EventAccumulator(str(tmp_path / "events"), size_guidance={"tensors": 0}).Reload()
    assert sorted(logged.Tags()["tensors"]) == ["loss", "mean"]
    assert [e.step for e in logged.Tensors("mean")] == [0, 4, 8, 10]
    np.testing.assert_allclose(make_ndarray(logged.Tensors("mean")[-1].tensor_proto), uninterrupted.mean(), rtol=1e-6)


def test_pictures_that_leave_the_range_are_told(tmp_path, caplog):
    """Not those of the first parameters, which may be random."""
    far = iter([0.2, 0.05, 0.3, 0.0])
    run(tmp_path, picture=lambda params, label: {"outside": next(far)})
    (told,) = (record.getMessage() for record in caplog.records if "outside" in record.getMessage())
    assert "toy: after step 8 the pictures' values are 0.30 outside [-1, 1] on average" in told
    assert "Lower the learning rate, or set the clip, of the optimizers in config.toy" in told


def test_given_parameters_are_started_from_and_let_go(tmp_path):
    given = jnp.ones(3)
    assert (run(tmp_path / "a", steps=1)["w"] != run(tmp_path / "b", steps=1, given=given)["w"]).all()
    assert given.is_deleted()


def test_parts_of_the_time_are_logged_apart_and_may_be_empty(tmp_path):
    class Parts(NamedTuple):
        loss: jax.Array
        by_t: jax.Array

    infos = [Parts(np.float32(1), np.float32([1, np.nan, np.nan])), Parts(np.float32(2), np.float32([3, np.nan, 5]))]
    assert mean_info(infos) == {"loss": 1.5, "by_t/0": 2.0, "by_t/2": 5.0}

    def method(last):
        def step(state, frozen, batch, key):
            return state, Parts(jnp.float32(0), jnp.asarray([1.0, jnp.nan]) * jnp.where(batch.x_T[0, 0] == 3, last, 1))

        return toy()._replace(step=step)

    run(tmp_path / "a", method=method(1))
    for last in (jnp.nan, jnp.inf):
        with pytest.raises(NotFinite, match="by_t is not finite at step 3"):
            run(tmp_path / "b", method=method(last))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("at", [1, 5, 9])
def test_a_signal_saves_and_the_next_run_ends_with_the_same_bits(tmp_path, uninterrupted, number, at):
    def interrupting(step):
        for i, batch in enumerate(batches(step), step):
            if i == at:
                os.kill(os.getpid(), number)
            yield batch

    before = signal.getsignal(number)
    with pytest.raises(Stopped, match=f"stopped by {number.name} at toy step {at + 1}, saved") as stop:
        run(tmp_path, data=interrupting)
    assert stop.value.code == 128 + number
    assert saved(tmp_path)[-1] == at + 1
    assert signal.getsignal(number) is before
    np.testing.assert_array_equal(run(tmp_path)["w"], uninterrupted)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path):
    with pytest.raises(
        NotFinite, match=r"loss is not finite at step 7; the last good checkpoint is step 4 .* config.toy"
    ):
        run(tmp_path, method=toy(explode_at=7))
    assert saved(tmp_path) == [4]


def test_a_parameter_that_is_not_finite_is_never_saved(tmp_path):
    def step(state, frozen, batch, key):
        return State(jnp.where(batch.x_T[0, 0] == 3, jnp.inf, state.w)), Info(jnp.float32(0))

    with pytest.raises(NotFinite, match="parameter is not finite after step 4; nothing was saved yet"):
        run(tmp_path, method=toy()._replace(step=step))
    assert saved(tmp_path) == []


def large():
    """The random walk with a state that fills a small disk."""

    def step(state, frozen, batch, key):
        w = 0.9 * state.w + jax.random.normal(key, (100_000,))
        return State(w), Info(w.sum() + batch.x_T.sum())

    return toy()._replace(step=step)


@contextlib.contextmanager
def full_disk():
    """Files cannot grow beyond 50 kB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield lambda full: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000 if full else before[0], before[1]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def filling(disk, first, last, kill_at=None):
    """Batches; the disk is full before the steps from first to last."""

    def iterate(step):
        for i, batch in enumerate(batches(step), step):
            disk(first <= i <= last)
            if i == kill_at:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    return iterate


def test_a_full_disk_leaves_no_more_checkpoints_than_are_kept(tmp_path, caplog):
    schedule = SCHEDULE._replace(save_every=2, keep=1)
    with full_disk() as disk:
        run(tmp_path, method=large(), size=100_000, data=filling(disk, 4, 7), schedule=schedule)
    assert re.search("step [24] is still there. The run goes on", caplog.text)
    assert "none is there" not in caplog.text
    assert saved(tmp_path) == [10]


def test_a_full_disk_costs_a_checkpoint_and_not_the_run(tmp_path, caplog):
    expected = np.asarray(run(tmp_path / "whole", method=large(), size=100_000)["w"])
    with full_disk() as disk:
        found = run(tmp_path / "full", method=large(), size=100_000, data=filling(disk, 2, 7))["w"]
    np.testing.assert_array_equal(found, expected)
    assert saved(tmp_path / "full") in ([10], [8, 10])  # step 8 is written while space is found
    assert [p.name for p in (tmp_path / "full" / "checkpoints").iterdir() if "tmp" in p.name] == []
    assert "none is there. The run goes on and will try again: free some space" in caplog.text

    with full_disk() as disk, pytest.raises(UserError, match=r"cannot write .*export.*free some space.* goes on from"):
        run(tmp_path / "end", method=large(), size=100_000, data=filling(disk, 9, 99))
    assert saved(tmp_path / "end") in ([4], [4, 8])
    np.testing.assert_array_equal(run(tmp_path / "end", method=large(), size=100_000)["w"], expected)

    with full_disk() as disk, pytest.raises(Stopped, match=r"at toy step 11, but only step [48] is saved"):
        run(tmp_path / "stop", steps=20, method=large(), size=100_000, data=filling(disk, 9, 99, kill_at=10))


def test_a_picture_that_cannot_be_written_costs_no_training(tmp_path, uninterrupted, caplog, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    def picture(params, label):
        with expendable(tmp_path / label):
            save_grid(tmp_path / label, {"w": jnp.zeros((1, 8, 8, 3))})
        return {"after": 1.0}  # other processes are at this, too

    monkeypatch.setattr(Image.Image, "save", full)
    np.testing.assert_array_equal(run(tmp_path, picture=picture)["w"], uninterrupted)
    assert "toy_000004 ([Errno 28] No space left on device): free some space" in caplog.text
    logged = EventAccumulator(str(tmp_path / "events"), size_guidance={"tensors": 0}).Reload()
    assert [e.step for e in logged.Tensors("after")] == [0, 4, 8, 10]


def test_curves_that_cannot_be_written_cost_no_training(tmp_path, uninterrupted, caplog, monkeypatch):
    def full(*args, **kwargs):
        raise ResourceExhaustedError(None, None, "No space left on device")

    for name in ("write_scalars", "flush", "close"):
        monkeypatch.setattr(f"clu.metric_writers.SummaryWriter.{name}", full)
    np.testing.assert_array_equal(run(tmp_path)["w"], uninterrupted)
    assert caplog.text.count("end here (No space left on device); the run goes on") == 1


def test_events_that_cannot_be_made_cost_no_training(tmp_path, uninterrupted, caplog):
    (tmp_path / "events").touch()
    np.testing.assert_array_equal(run(tmp_path)["w"], uninterrupted)
    assert "there will be no curves in" in caplog.text


def test_a_full_disk_under_the_log_costs_no_training(tmp_path, uninterrupted, monkeypatch):
    found = None
    closing = contextlib.suppress(OSError)  # to close such a file is an error, too
    with closing, open("/dev/full", "w", buffering=1) as full, monkeypatch.context() as patch:
        patch.setattr("sys.stderr", full)
        patch.setattr("sys.stdout", full)
        say("a table")
        found = run(tmp_path)["w"]
    np.testing.assert_array_equal(found, uninterrupted)


def test_steps_are_logged_once_the_next_one_is_under_way(tmp_path, monkeypatch):
    """To read what a step found when nothing follows it would leave the device without work."""
    read, get = [], jax.device_get

    def watched(infos):
        read.append(len(infos))
        return get(infos)

    monkeypatch.setattr(jax, "device_get", watched)
    run(tmp_path, steps=5, schedule=SCHEDULE._replace(log_every=2, save_every=100))
    logged = EventAccumulator(str(tmp_path / "events"), size_guidance={"tensors": 0}).Reload()
    assert [e.step for e in logged.Tensors("loss")] == [2, 4, 5]
    assert read[:3] == [2, 2, 1]


def test_a_stop_that_comes_with_the_last_files_is_heard(tmp_path, monkeypatch):
    asked = iter([False] * 10 + [True])
    monkeypatch.setattr("ibmd_jax.train.loop.preempted", lambda: next(asked))
    with pytest.raises(Stopped, match="at toy step 10, saved"):
        run(tmp_path)
    assert (tmp_path / "export").is_dir()


def test_few_steps_are_under_way_at_a_time(tmp_path):
    done = []

    def slowly(w):
        time.sleep(0.05)
        done.append(0)
        return w

    def step(state, frozen, batch, key):
        w = jax.pure_callback(slowly, jax.ShapeDtypeStruct((3,), jnp.float32), state.w)
        return State(w), Info(w.sum() + batch.x_T.sum())

    def watched(first):
        for i, batch in enumerate(batches(first), first):
            under_way.append(i - len(done))
            yield batch

    under_way = []
    run(tmp_path, method=toy()._replace(step=step), data=watched, schedule=Schedule(log_every=100))
    assert max(under_way) <= 1


def test_a_profile_of_some_steps_changes_nothing(tmp_path, uninterrupted):
    params = run(tmp_path, schedule=SCHEDULE._replace(profile=2))
    np.testing.assert_array_equal(params["w"], uninterrupted)
    assert len(list((tmp_path / "profile").rglob("perfetto_trace.json.gz"))) == 1


def test_a_step_takes_nothing_from_the_host(tmp_path):
    with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device transfer"):
        run(tmp_path, data=lambda step: iter([Batch(np.zeros((4, 1), np.float32))]))


def test_seeds_share_one_program(tmp_path, uninterrupted):
    """A cache of compiled programs (JAX_COMPILATION_CACHE_DIR) then serves all seeds of a table."""
    cache = {"jax_compilation_cache_dir": str(tmp_path / "cache"), "jax_persistent_cache_min_compile_time_secs": 0}
    before = {name: getattr(jax.config, name) for name in cache}
    try:
        for name, value in cache.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        ends = [np.asarray(run(tmp_path / str(seed), seed=seed)["w"]) for seed in (0, 1)]
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
    assert len([*(tmp_path / "cache").glob("jit_update-*-cache")]) == 1
    assert np.array_equal(ends[0], uninterrupted)
    assert not np.array_equal(*ends)


def damage(path, how):
    """Damages every file of the checkpoint at `path` that holds array data."""
    for file in [p for p in path.rglob("*") if p.is_file() and p.parent.name == "d"]:
        data = bytearray(file.read_bytes())
        if how == "truncated":
            file.write_bytes(data[: len(data) // 2])
        elif how == "flipped":
            data[len(data) // 2] ^= 0xFF
            file.write_bytes(data)
        else:
            file.unlink()


@pytest.mark.parametrize("how", ["truncated", "flipped", "emptied"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before_and_says_so(tmp_path, uninterrupted, how, caplog):
    run(tmp_path, steps=8)
    damage(tmp_path / "checkpoints" / "8", how)
    np.testing.assert_array_equal(run(tmp_path)["w"], uninterrupted)
    assert "checkpoints/8 is unreadable" in caplog.text
    assert "falling back to step 4" in caplog.text


def test_a_checkpoint_that_another_process_cannot_read_is_passed_over(tmp_path, uninterrupted, monkeypatch, caplog):
    run(tmp_path, steps=8)
    others = iter([False, GOOD, BAD])  # it sees step 8, and reads its metadata, but not its arrays
    monkeypatch.setattr("ibmd_jax.train.checkpoint.highest", lambda here: max(here, next(others, GOOD)))
    np.testing.assert_array_equal(run(tmp_path)["w"], uninterrupted)
    assert "checkpoints/8 is unreadable (in another process); falling back to step 4" in caplog.text


def test_processes_go_on_from_the_step_that_the_first_one_sees(tmp_path, uninterrupted, monkeypatch):
    """A file server may show each of them another newest checkpoint."""
    run(tmp_path, steps=8)
    checkpoint = "ibmd_jax.train.checkpoint"
    with monkeypatch.context() as patch:
        patch.setattr(f"{checkpoint}.of_first", lambda newest: 4)
        opened = Checkpoints(tmp_path / "checkpoints", 3)
        assert opened.restore(State(ABSTRACT))[0] == 4
        patch.setattr(f"{checkpoint}.of_first", lambda newest: 12)
        patch.setattr(f"{checkpoint}.PATIENCE", 0)
        with pytest.raises(NotNow, match=r"not every process sees the checkpoint .*/12: start again when all do"):
            opened.restore(State(ABSTRACT))
        opened.close()
    assert saved(tmp_path) == [4, 8]
    np.testing.assert_array_equal(run(tmp_path)["w"], uninterrupted)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "toy").touch()
    with pytest.raises(UserError, match=r"cannot write to .*toy/checkpoints .*: make it writable"):
        run(tmp_path / "toy")


def test_nothing_readable_is_an_error_and_not_a_fresh_start(tmp_path):
    run(tmp_path, steps=4)
    damage(tmp_path / "checkpoints" / "4", "emptied")
    for _ in range(2):
        with pytest.raises(UserError, match=r"no checkpoint in .* is readable, see .*unreadable: remove"):
            run(tmp_path)


def test_a_checkpoint_that_cannot_be_read_at_the_moment_stays_where_it_is(tmp_path, uninterrupted, monkeypatch):
    run(tmp_path, steps=8)

    def stale(*args, **kwargs):
        raise OSError(116, "Stale file handle")

    with monkeypatch.context() as patch:
        patch.setattr("orbax.checkpoint.CompositeCheckpointHandler.restore", stale)
        with pytest.raises(UserError, match=r"cannot read .*checkpoints/8 now .*Stale.*start again"):
            run(tmp_path)
    assert saved(tmp_path) == [4, 8]
    np.testing.assert_array_equal(run(tmp_path)["w"], uninterrupted)


def test_an_image_that_cannot_be_read_costs_no_step(tmp_path, uninterrupted):
    def broken(step):
        yield from itertools.islice(batches(step), 6)
        raise UserError("cannot read the image a.png")

    with pytest.raises(UserError, match=r"a\.png"):
        run(tmp_path, data=broken)
    assert saved(tmp_path) == [4, 6]
    np.testing.assert_array_equal(run(tmp_path)["w"], uninterrupted)


def test_another_shape_is_named_with_both_shapes(tmp_path):
    run(tmp_path, steps=4)
    with pytest.raises(UserError, match=r"w is \(3,\) in the checkpoint and \(5,\) in the configured network"):
        run(tmp_path, size=5)


def test_another_teacher_is_refused(tmp_path):
    run(tmp_path, steps=4, identity={"teacher": "a"})
    with pytest.raises(UserError, match="was trained with"):
        run(tmp_path, identity={"teacher": "b"})


def test_load_params_errors(tmp_path):
    with pytest.raises(UserError, match="no checkpoint at"):
        load_params(tmp_path / "nowhere", {"w": ABSTRACT})
    run(tmp_path, steps=2)
    with pytest.raises(UserError, match=r"v is absent in the checkpoint and \(3,\)"):
        load_params(tmp_path / "export", {"v": ABSTRACT})
    damage(tmp_path / "export", "truncated")
    with pytest.raises(UserError, match="is unreadable"):
        load_params(tmp_path / "export", {"w": ABSTRACT})


def test_an_export_is_replaced_once_the_next_is_complete(tmp_path):
    export_params(tmp_path / "export", {"w": jnp.zeros(3)}, {})
    with full_disk() as disk:
        disk(True)
        with pytest.raises(UserError, match=r"cannot write .*export"):
            export_params(tmp_path / "export", {"w": jnp.ones(100_000)}, {})
    np.testing.assert_array_equal(load_params(tmp_path / "export", {"w": ABSTRACT})[0]["w"], 0)
    export_params(tmp_path / "export", {"w": jnp.ones(3)}, {})
    np.testing.assert_array_equal(load_params(tmp_path / "export", {"w": ABSTRACT})[0]["w"], 1)
    assert [p.name for p in tmp_path.iterdir()] == ["export"]


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    run(tmp_path, steps=20, schedule=SCHEDULE._replace(keep=2))
    assert saved(tmp_path) == [16, 20]


def test_a_run_continues_to_more_steps(tmp_path, uninterrupted):
    run(tmp_path, steps=6)
    np.testing.assert_array_equal(run(tmp_path)["w"], uninterrupted)
