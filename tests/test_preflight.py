"""Preflight: what it counts, what it reads from the compiler, and its command."""

import importlib.util
import json
import logging
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from config_files import load

from ibmd_jax.core.errors import UserError
from ibmd_jax.preflight import __main__ as preflight
from ibmd_jax.preflight import program

ROOT = Path(__file__).parents[1]


def count(f, *args):
    return program.count_flops(jax.make_jaxpr(f)(*args).jaxpr)


def test_flops_of_products_convolutions_and_their_gradients():
    a, b = jnp.ones((5, 7)), jnp.ones((7, 3))
    assert count(jnp.dot, a, b) == 2 * 5 * 7 * 3
    assert count(jax.grad(lambda a, b: jnp.square(a @ b).sum(), (0, 1)), a, b) == 3 * 2 * 5 * 7 * 3
    x, w = jnp.ones((2, 8, 8, 4)), jnp.ones((3, 3, 4, 6))

    def convolve(x, w):
        return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    once = 2 * 2 * 8 * 8 * 6 * 9 * 4
    assert count(convolve, x, w) == once
    assert count(jax.grad(lambda x, w: jnp.square(convolve(x, w)).sum(), (0, 1)), x, w) == 3 * once


def test_loops_count_as_often_as_they_run_and_one_branch_of_several():
    a = jnp.ones((4, 4))
    once = 2 * 4**3
    assert count(lambda a: jax.lax.scan(lambda c, _: (c @ a, None), a, None, length=6), a) == 6 * once
    assert count(lambda a: jax.lax.cond(True, lambda a: a @ a, lambda a: a @ a @ a, a), a) == 2 * once
    assert count(jax.grad(jax.checkpoint(lambda a: (a @ jnp.sin(a @ a)).sum())), a) > count(lambda a: a @ (a @ a), a)


HLO = """HloModule jit_f
%body.1 (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %conv = f32[8] fusion(%p), backend_config={"estimated_cycles":"100","convolution_algorithm_config":{}}
  %whole = bf16[2,8]{1,0} all-gather(%conv), dimensions={0}
  ROOT %out = (s32[], f32[8]) tuple(%i, %conv)
}
%condition.2 (p: (s32[], f32[8])) -> pred[] {
  %limit = s32[]{:T(128)} constant(7)
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}
%sum.3 (p: f32[8]) -> f32[2] {
  ROOT %part = f32[2]{0} reduce-scatter(%p), dimensions={0}
}
ENTRY %main (x: f32[8]) -> f32[8] {
  %s = ((f32[8]), f32[2], u32[]) async-start(%x), calls=%sum.3
  %first = f32[8] fusion(%x), calls=%d, backend_config={"window_config":{"estimated_cycles":"30"}}
  %w = (s32[], f32[8]) while(%tuple), condition=%condition.2, body=%body.1
  %g = bf16[4,8]{1,0} all-gather(%first), dimensions={0}
  %r = (f32[8]{0}, f32[2]{0}) all-reduce-start(%first, %x), to_apply=%add
  ROOT %d = (f32[8]{0}, f32[2]{0}) all-reduce-done(%r)
}
"""


def test_the_compiler_s_estimates_are_summed_over_loops():
    assert program.estimated_cycles(HLO) == {"fusion": 30, "convolution": 7 * 100}


def test_collectives_are_counted_over_loops_with_the_bytes_of_their_results():
    in_a_loop = 7 * 2 * 8 * 2
    found = program.collectives(HLO)
    assert found == {"all-gather": (1 + 7, 64 + in_a_loop), "all-reduce": (1, 40), "reduce-scatter": (1, 8)}


def config(**distill):
    found = load("inpaint").get_config("quicktest")
    found.distill.update(**distill)
    return found


@pytest.fixture(scope="module")
def split():
    """The job on four devices with every leaf that can be split in four."""
    found = config()
    found.schedule.fsdp_min_size = 1
    return preflight.make_job(found, "distill", jax.devices())


def test_a_chip_holds_its_share_of_the_states(split):
    whole = preflight.make_job(config(), "distill", jax.devices())
    for name in ("student", "auxiliary", "teacher", "average", "optimiser"):
        assert 0.25 <= split.parts[name] / whole.parts[name] < 1.1 * 0.25
    assert split.microbatch == 2


def test_the_loop_holds_the_batches_of_four_steps(split):
    """In use, waiting (two), and being made: of L + 1 = 3 batches each x_T and the mask, and of the last x_0, too."""
    assert split.batch.x_0 is None
    image, mask = 32 * 32 * 3 * 4, 32 * 32
    assert split.parts["batch"] == 3 * 8 * (4 * (image + mask) + image) // 4
    clean = preflight.make_job(config(real_data=(0.9, 0.9)), "distill", jax.devices())
    assert clean.parts["batch"] == 3 * 8 * 4 * (2 * image + mask) // 4
    teacher = preflight.make_job(config(), "teacher", jax.devices())
    assert teacher.parts["batch"] == 4 * preflight.bytes_on_a_chip(teacher.batch)


@pytest.mark.parametrize(
    ("network", "shape", "dtype"), [({"classes": 5}, (8,), jnp.int32), ({"embedding": 16}, (8, 16), jnp.float32)]
)
def test_the_batch_has_what_the_network_is_conditioned_on(split, network, shape, dtype):
    found = config()
    with found.unlocked():
        found.network = {"name": "dit", "channels": 16, "depth": 1, "heads": 2, "conditional": False, **network}
    cond = preflight.make_job(found, "distill", jax.devices()).batch.cond
    assert (cond.shape, cond.dtype) == (shape, dtype)
    assert cond.sharding.shard_shape(shape)[0] == 2
    assert split.batch.cond is None


@pytest.mark.usefixtures("lenient")
def test_an_update_is_compiled_and_measured(split):
    assert {name: update.count for name, update in split.method.updates.items()} == {"auxiliary": 2, "student": 1}
    report = preflight.measure(split, "auxiliary")
    assert (report.name, report.count) == ("auxiliary", 2)
    assert report.flops > 1e7
    assert report.peak >= report.temporaries + sum(split.parts.values())
    # Both networks travel once; activations stay where their examples are.
    count, size = report.collectives["all-gather"]
    assert count > 10
    assert size < 1.1 * 4 * (split.parts["student"] + split.parts["auxiliary"])
    assert "all-to-all" not in report.collectives
    assert report.again == 0
    slow = report._replace(cycles={"fusion": 6.0})
    sent = sum(size for _, size in report.collectives.values())
    text = preflight.describe(split, [slow], preflight.Chip(report.flops, 1.0, report.bytes / 3, sent / 0.7, 1.0))
    assert "DOES NOT FIT" in text
    assert "at least 1000.0 ms for its arithmetic at peak, 3000.0 ms for these bytes," in text
    assert "6.00 times the floor of its arithmetic, at most 2.00 times that of arithmetic or memory" in text
    assert "700.0 ms for what the chips send to each other, if none of it overlaps;" in text
    assert "; 1.40 s more for what the chips send to each other" in text  # of two updates
    chip = preflight.Chip(1.0, 1.0, 1.0, 1.0, report.peak + 150)
    both = [report._replace(code=code, peak=report.peak + code) for code in (100, 50)]
    assert preflight.peak_of(both) == chip.memory
    assert ": fits" in preflight.describe(split, both, chip)
    refused = preflight.describe(split, both, chip, "student update: too much")
    assert ": DOES NOT FIT" in refused
    assert refused.endswith("DOES NOT FIT: student update: too much")
    assert "a step:" not in refused


@pytest.mark.usefixtures("lenient")
def test_what_remat_computes_again_is_no_arithmetic_of_the_step(split):
    found = config()
    found.network.remat = "block"
    again = preflight.make_job(found, "distill", jax.devices())
    for name in ("auxiliary", "student"):
        _, flops, more = preflight.trace(split, name)
        assert more == 0
        assert preflight.trace(again, name)[1] == flops
        assert 0.05 * flops < preflight.trace(again, name)[2] < flops


def test_a_corruption_with_settings_tells_whether_there_is_a_mask():
    found = config()
    for spec, masked in (("{'name': 'inpaint-center', 'fill': 'grey'}", True), ({"name": "jpeg", "quality": 7}, False)):
        found.data.corruption = spec
        assert (preflight.make_job(found, "teacher", jax.devices()).batch.mask is not None) == masked


def test_a_corruption_that_does_not_fit_is_told():
    found = config()
    found.data.corruption = {"name": "jpeg", "quality": 0}
    with pytest.raises(UserError, match=r"config.data.corruption = .*quality"):
        preflight.make_job(found, "teacher", jax.devices())


def test_a_given_teacher_that_is_elsewhere_is_taken_as_configured(capsys):
    found = config()
    found.teacher.update(checkpoint="teachers/far,teachers/farther", combine="by_label")
    assert preflight.make_job(found, "distill", jax.devices()).parts["teacher"] > 0
    assert "teachers/far is not here" in capsys.readouterr().out


def fitting(monkeypatch, peak):
    """Lets a microbatch of m take peak(m) GiB; the chip has 15.75."""
    tried = []

    def fake(found, stage, devices, chip):
        m = found[stage].batch_size // (len(devices) * found[stage].accumulate)
        tried.append(m)
        failed = "RESOURCE_EXHAUSTED" if peak(m) > 30 else None
        return preflight.Found(None, [SimpleNamespace(peak=peak(m) * 2**30, code=0)], failed)

    monkeypatch.setattr(preflight, "preflight", fake)
    found = config(batch_size=64)
    preflight.largest(found, "distill", jax.devices(), preflight.CHIPS["v5e"])
    return found.distill.accumulate, tried


def test_the_largest_microbatch_that_fits_is_found_in_few_compilations(monkeypatch):
    assert fitting(monkeypatch, lambda m: 1 + m) == (2, [1, 2, 8])
    assert fitting(monkeypatch, lambda m: 1 + 0.1 * m) == (1, [1, 2, 16])
    assert fitting(monkeypatch, lambda m: 10 * m) == (16, [1, 2])
    assert fitting(monkeypatch, lambda m: m if m < 4 else 2 * m) == (4, [1, 2, 16, 8, 4])
    with pytest.raises(UserError, match="one example a chip does not fit"):
        fitting(monkeypatch, lambda m: 16 * m)


def test_what_compiled_before_an_update_that_does_not_fit_is_kept(monkeypatch, caplog, capsys, tmp_path):
    def measure(job, name):
        if name == "student":
            raise preflight.DoesNotFit("student update: Used 16.12G of 15.75G hbm")
        return preflight.Report(name, 2, 1e9, 0, 1e9, 0, 0, 2**30, {"fusion": 1e6}, {}, 1.0)

    for name, value in preflight.ALONE.items():  # main sets these, and the levels: both as before after the test
        monkeypatch.setenv(name, value)
    for name in ("absl", "jax"):
        caplog.set_level(logging.ERROR, logger=name)
    file = tmp_path / "out.json"
    given = SimpleNamespace(config=config(), topology="cpu", stage="distill", fit=False, json=str(file))
    monkeypatch.setattr(preflight.flags, "FLAGS", given)
    monkeypatch.setattr(preflight, "measure", measure)
    assert preflight.main([]) == 1
    printed, found = capsys.readouterr(), json.loads(file.read_text())
    assert [u["name"] for u in found["updates"]] == ["auxiliary"]
    assert found["does_not_fit"] == "student update: Used 16.12G of 15.75G hbm"
    assert "auxiliary update, 2 in a step" in printed.out
    assert "DOES NOT FIT: student update" in printed.out
    assert "does not fit: student update: Used 16.12G of 15.75G hbm" in printed.err


def test_a_batch_smaller_than_the_chips_is_refused_before_any_compilation(monkeypatch):
    monkeypatch.setattr(preflight, "measure", lambda *_: pytest.fail("compiled"))
    with pytest.raises(UserError, match="batch_size = 2 does not divide over 4 devices: use 4"):
        preflight.largest(config(batch_size=2), "distill", jax.devices(), preflight.CHIPS["v5e"])


def test_wrong_topologies_are_refused():
    for name in ("v9:4x4", "v5e", "v5e:16"):
        with pytest.raises(UserError, match="give cpu, gpu, or a slice such as v5e:4x4"):
            preflight.find_devices(name)


def command(environment, *args):
    line = [sys.executable, "-m", "ibmd_jax.preflight", "--config=configs/inpaint.py:quicktest", *args]
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout + done.stderr


def test_the_command_prints_a_table_and_writes_json(environment, tmp_path):
    code, out = command(environment, "--topology=cpu", "--stage=teacher", f"--json={tmp_path / 'out.json'}")
    assert code == 0, out
    assert "teacher update, 1 in a step" in out
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["updates"][0]["flops"] > 1e8
    code, out = command(environment, "--topology=cpu", "--fit")
    assert code == 2
    assert "error: --fit needs a chip of known memory" in out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--config.network.pach=2"], "unknown field 'pach'.*patch"),
        (["stray"], "unexpected argument 'stray'"),
        (["--config.data.corruption", "grey"], "unexpected argument 'grey'; write --flag=value"),
        (["--json=nowhere/x.json"], "--json=nowhere/x.json: name a file in a folder that exists"),
        (["--json=configs"], "--json=configs: name a file"),
    ],
)
def test_a_wrong_command_is_one_clear_error_before_any_work(environment, args, message):
    code, out = command(environment, *args)
    assert code == 2
    assert re.fullmatch(f"error: .*{message}.*\n", out), out


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs the extra preflight"
)  # not in dev: see setup.cfg
def test_a_slice_that_is_not_here(environment):
    environment = {name: value for name, value in environment.items() if name != "XLA_FLAGS"}  # some are CPUs' alone
    code, out = command(environment, "--topology=v5e:2x2", "--stage=teacher", "--config.network.channels=(16,)")
    assert code == 0, out
    assert "4 x TPU v5 lite, 4 examples a chip" in out
    assert "of 16128.0: fits" in out
    table = {name: float(size) for name, size in re.findall(r"^(\w[\w ]*?) +(\d+\.\d)\b", out, re.MULTILINE)}
    assert table["the program itself"] > 0
    assert table.pop("peak") > sum(table.values()) - 0.5
    assert "all-reduce" in out
    assert float(out.split("estimate, ")[1].split(" times")[0]) > 1
