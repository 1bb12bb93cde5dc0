"""Checkpoints through the command line, there and back; and files that are damaged, foreign or malicious."""

import argparse
import json
import mmap
import os
import pathlib
import pickle
import re
import struct
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import load_file, save_file

from benchmarks import torch_zip
from ibmd_jax.build.model import make_network
from ibmd_jax.convert import published
from ibmd_jax.convert.__main__ import main, shapes_of
from ibmd_jax.convert.names import convert, our_name, to_torch, torch_name
from ibmd_jax.convert.published import network_settings, recognise
from ibmd_jax.convert.torch_file import load_pickle, load_torch
from ibmd_jax.core.errors import UserError
from ibmd_jax.networks.adm import PRESETS
from ibmd_jax.train.checkpoint import export_params, load_params, read_meta

GOLDEN = Path(__file__).parents[1] / "golden"
NETWORK = {
    "name": "adm",
    "out_channels": 3,
    "channels": 32,
    "multipliers": [1, 2],
    "blocks": 1,
    "attention": [2],
    "head_channels": 16,
    "resblock_updown": True,
    "scale_shift": True,
    "classes": 0,
}
OPTIONS = {"beta_max": 0.3, "interval": 1000, "cond_x1": False, "ot_ode": False, "wandb_api_key": "SECRET-KEY"}


def weights(settings=NETWORK, channels=3, seed=0):
    """Random parameters under our names."""
    rng = np.random.default_rng(seed)
    return {n: rng.normal(size=s).astype(np.float32) for n, s in shapes_of(settings, channels).items()}


def i2sb_run(folder, raw, ema, **changes):
    """latest.pt and options.pkl as I2SB writes them."""
    folder.mkdir(exist_ok=True)
    net = {f"diffusion_model.{k}": v for k, v in to_torch(raw).items()}
    average = {"decay": 0.99, "num_updates": 7, "shadow_params": list(to_torch(ema).values()), "collected_params": None}
    torch_zip.save(folder / "latest.pt", {"net": net, "ema": average, "optimizer": {"state": {}}, "sched": None})
    options = argparse.Namespace(**{**OPTIONS, "ckpt_path": pathlib.PosixPath("results"), **changes})
    (folder / "options.pkl").write_bytes(pickle.dumps(options))
    return folder / "latest.pt"


def loaded(folder):
    shapes = read_meta(folder)["shapes"]
    nested = {}
    for name, shape in shapes.items():
        *parents, leaf = name.split("/")
        node = nested
        for part in parents:
            node = node.setdefault(part, {})
        node[leaf] = jax.ShapeDtypeStruct(shape, np.float32)
    params, meta = load_params(folder, jax.tree.map(lambda x: np.empty(x.shape, x.dtype), nested))
    return {k: np.asarray(v) for k, v in flatten_dict(params, sep="/").items()}, meta


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_an_i2sb_run_becomes_a_teacher_from_its_ema(tmp_path, capsys):
    raw, ema = weights(seed=0), weights(seed=1)
    source = i2sb_run(tmp_path / "run", raw, ema, ot_ode=True)
    assert main([str(source), "--to", str(tmp_path / "teacher"), "--head_channels", "16"]) == 0
    printed = capsys.readouterr().out
    assert "EMA of decay 0.99 after 7 updates" in printed
    assert "SECRET" not in printed
    params, meta = loaded(tmp_path / "teacher")
    same(params, ema)
    same(loaded(tmp_path / "teacher-raw")[0], raw)
    assert meta["model"]["bridge"] == {"name": "i2sb_table", "beta_max": 0.3, "steps": 1000, "ot_ode": True}
    assert meta["model"]["network"] == {**NETWORK, "legacy_attention": True, "conditional": False}
    more = ["--head_channels", "16", "--attention", "new"]
    assert main([str(tmp_path / "run"), "--to", str(tmp_path / "again"), *more]) == 0
    assert not read_meta(tmp_path / "again")["model"]["network"]["legacy_attention"]


def memory_map(array):
    """Which storage a tensor is a view of."""
    while not isinstance(array, mmap.mmap):
        array = array.base
    return id(array)


def test_the_stored_ddbm_checkpoint_becomes_a_teacher(tmp_path, capsys):
    """Written by torch.save, as views into two flat storages."""
    state = load_torch(GOLDEN / "ddbm_tiny.pt")
    assert len({memory_map(v) for v in state.values()}) == 2
    assert main([str(GOLDEN / "ddbm_tiny.pt"), "--to", str(tmp_path / "t"), "--head_channels", "16"]) == 0
    assert "attention order  new, [q, k, v][head]" in capsys.readouterr().out
    params, meta = loaded(tmp_path / "t")
    assert {our_name(k) for k in state} == params.keys()
    np.testing.assert_array_equal(params["middle_block_1/qkv/kernel"].T, state["middle_block.1.qkv.weight"][..., 0, 0])
    first = state["input_blocks.0.0.weight"]
    np.testing.assert_array_equal(params["input_blocks_0_0/kernel"], first.transpose(2, 3, 1, 0))
    assert meta["model"]["parametrisation"] == {"name": "ddbm"}
    assert meta["model"]["network"]["conditional"]


@pytest.mark.parametrize(
    ("settings", "channels", "source"),
    [
        ({}, 6, "ddbm"),
        ({"classes": 7}, 6, "dbim"),
        ({"out_channels": 6}, 3, "adm"),
        (
            {
                "resblock_updown": False,
                "scale_shift": False,
                "multipliers": [1, 2, 3],
                "blocks": 2,
                "attention": [1, 4],
            },
            6,
            "ddbm",
        ),
    ],
)
def test_the_network_is_read_off_a_bare_state_dict(settings, channels, source, tmp_path):
    settings = {**NETWORK, **settings}
    state = to_torch(weights(settings, channels))
    assert network_settings(state, 16) == settings
    torch_zip.save(tmp_path / "model.pt", state)
    found = recognise(tmp_path / "model.pt", head_channels=16)
    assert found.source == source
    network = found.model["network"]
    assert network["out_channels"] == 3
    params = convert(found.state, shapes_of(network, channels))
    expected = weights(settings, channels)
    for name, value in params.items():
        np.testing.assert_array_equal(value, expected[name][..., :3] if name.startswith("out_2") else expected[name])


def test_there_and_back_is_bit_identical(tmp_path, capsys):
    params, first, second = weights(channels=6), tmp_path / "new" / "a.safetensors", tmp_path / "teacher"
    nested = {}
    for name, value in params.items():
        *parents, leaf = name.split("/")
        node = nested
        for part in parents:
            node = node.setdefault(part, {})
        node[leaf] = value
    process = {"bridge": {"name": "i2sb_table", "beta_max": 0.3}, "parametrisation": {"name": "eps"}}
    # As a configuration has it: what is not said is the default.
    brief = {name: value for name, value in NETWORK.items() if name != "out_channels"}
    model = {"network": {**brief, "conditional": True}, **process}
    export_params(tmp_path / "ours", nested, {"step": 3, "model": model})
    assert main([str(tmp_path / "ours"), "--to", str(first)]) == 0  # into a new folder
    assert main([str(first), "--to", str(second)]) == 0
    same(loaded(second)[0], params)
    found = read_meta(second)["model"]
    assert make_network(found["network"]) == make_network(model["network"])
    assert found["network"]["legacy_attention"]  # not what its shapes suggest, DDBM
    assert {name: found[name] for name in process} == process
    unconditional = {**model, "network": {**model["network"], "conditional": False}}
    save_file(load_file(first), tmp_path / "noise.safetensors", {"ibmd_jax": json.dumps(unconditional)})
    assert main([str(tmp_path / "noise.safetensors"), "--to", str(tmp_path / "none")]) == 2
    assert "noise.safetensors is a student with noise input" in capsys.readouterr().err
    (tmp_path / "taken.safetensors").mkdir()
    for place, reason in (("taken.safetensors", "Is a directory"), ("file/a.safetensors", "")):
        (tmp_path / "file").touch()
        assert main([str(tmp_path / "ours"), "--to", str(tmp_path / place)]) == 2
        error = capsys.readouterr().err
        assert re.fullmatch(rf"error: cannot write .*{place}: .*{reason}.*\n", error), error
    assert not list(tmp_path.glob("*.tmp"))


def test_the_student_s_noise_input_becomes_input_channels():
    params = weights()
    params["noise_in/kernel"] = np.ones((3, 3, 2, 32), np.float32)
    first = to_torch(params)["input_blocks.0.0.weight"]
    assert first.shape == (32, 5, 3, 3)
    np.testing.assert_array_equal(first[:, 3:], 1)


@pytest.mark.parametrize("name", PRESETS)
def test_names_of_all_published_networks_go_there_and_back(name):
    settings = {"multipliers": [1, 1, 2, 2, 4, 4], **PRESETS[name], "head_channels": 64}
    shapes = shapes_of({**NETWORK, "channels": 64, "blocks": 2, **settings}, 6)
    theirs = {torch_name(n) for n in shapes}
    assert len(theirs) == len(shapes)
    assert {our_name(n) for n in theirs} == shapes.keys()


@pytest.mark.parametrize("axes", [0, 1, 2])
def test_1x1_weights_of_two_to_four_axes(axes):
    params, expected = weights(), shapes_of(NETWORK, 3)
    state = to_torch(params)
    for name in state:
        if "qkv.weight" in name or "proj_out.weight" in name:
            state[name] = state[name].reshape(state[name].shape[:2] + (1,) * axes)
    same(convert(state, expected), params)


class Payload:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("kind", ["zip", "options"])
def test_a_malicious_pickle_is_refused_by_name_and_nothing_runs(tmp_path, kind):
    marker = tmp_path / "owned"
    if kind == "zip":
        with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps({"net": Payload(marker)}))
        with pytest.raises(UserError, match=r"x\.pt: it asks for (posix|nt)\.system, which is not read"):
            load_torch(tmp_path / "x.pt")
    else:
        (tmp_path / "x.pkl").write_bytes(pickle.dumps(Payload(marker)))
        with pytest.raises(UserError, match=r"(posix|nt)\.system"):
            load_pickle(tmp_path / "x.pkl")
    assert not marker.exists()


def test_a_pickle_cannot_exchange_a_storage_for_what_lies_beyond_its_file(tmp_path):
    """A view of stride 0 has as many elements as it likes; as a storage it would let the next one read that far."""

    def text(s):
        return b"X" + struct.pack("<I", len(s)) + s

    def number(n):
        return b"J" + struct.pack("<i", n)

    def storage(key):
        kind = text(b"storage") + b"ctorch\nFloatStorage\n" + text(key) + text(b"cpu") + number(4)
        return b"(" + kind + b"tQ"

    def tensor(of, size, stride):
        shape = number(0) + number(size) + b"\x85" + number(stride) + b"\x85"
        return b"ctorch._utils\n_rebuild_tensor_v2\n(" + of + shape + b"tR"

    many = 2_000_000
    exchange = storage(b"1") + b"q\x01}" + text(b"array") + tensor(storage(b"0"), many, 0) + b"sb0"
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02" + exchange + tensor(b"h\x01", many, 1) + b".")
        archive.writestr("a/data/0", bytes(16))
        archive.writestr("a/data/1", bytes(16))
    with pytest.raises(UserError, match=r"cannot read .*x\.pt"):
        load_torch(tmp_path / "x.pt")


@pytest.mark.parametrize("outputs", [1, 3])
def test_a_student_s_noise_input_is_no_teacher_s(tmp_path, capsys, outputs):
    settings = {**NETWORK, "out_channels": outputs}
    for channels, conditional in ((outputs, False), (2 * outputs, True)):
        torch_zip.save(tmp_path / "model.pt", to_torch(weights(settings, channels)))
        found = recognise(tmp_path / "model.pt", head_channels=16)
        assert found.model["network"]["conditional"] == conditional
        assert found.source == ("ddbm" if conditional else "adm")
    torch_zip.save(tmp_path / "model.pt", to_torch(weights(settings, 4 * outputs)))
    assert main([str(tmp_path / "model.pt"), "--to", str(tmp_path / "out"), "--head_channels", "16"]) == 2
    assert "is this a student with noise input?" in capsys.readouterr().err
    student = weights(channels=6)  # of an I2SB teacher that does not see x_T
    source = i2sb_run(tmp_path / "run", student, student)
    assert main([str(source), "--to", str(tmp_path / "out"), "--head_channels", "16"]) == 2
    assert "cond_x1 = False, but its network has 6 input channels" in capsys.readouterr().err


def damaged(path, how):
    state = to_torch(weights(channels=6))
    first = "input_blocks.0.0.weight"
    if how == "missing tensor":
        del state["middle_block.0.in_layers.2.bias"]
    if how == "extra tensor":
        state["middle_block.7.in_layers.2.bias"] = np.ones(3, np.float32)
    if how == "foreign tensor":
        state["encoder.layer"] = np.ones(3, np.float32)
    if how == "wrong shape":
        state["middle_block.0.in_layers.2.bias"] = np.ones(3, np.float32)
    if how == "nan":
        state[first][0, 0, 0, 0] = np.nan
    torch_zip.save(path, {} if how == "empty" else {"a": 1} if how == "no tensors" else state)
    data = path.read_bytes()
    if how == "truncated":
        path.write_bytes(data[: len(data) // 2])
    if how == "wrong magic":
        path.write_bytes(b"\x80\x02" + data)
    if how == "no file":
        path.unlink()
    if how == "other zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("hello", "world")
    if how == "storage cut":
        with zipfile.ZipFile(path) as old:
            content = {name: old.read(name) for name in old.namelist()}
        with zipfile.ZipFile(path, "w") as archive:
            for name, value in content.items():
                archive.writestr(name, value[:-4] if name == "archive/data/0" else value)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing tensor", "lacks the parameter 'middle_block_0/conv_in/bias'"),
        ("extra tensor", "'middle_block.7.in_layers.2.bias' has no place"),
        ("foreign tensor", "'encoder.layer' belongs to no ADM UNet"),
        ("wrong shape", "'middle_block.0.in_layers.2.bias': the checkpoint's is (3,), this network's"),
        ("nan", "'input_blocks.0.0.weight' holds values that are not finite"),
        ("empty", "holds no parameters"),
        ("no tensors", "holds no parameters"),
        ("truncated", "cannot read"),
        ("wrong magic", "it is not a zip"),
        ("no file", "there is no file"),
        ("other zip", "it has no data.pkl"),
        ("storage cut", "bytes instead of"),
    ],
)
def test_a_damaged_file_is_one_clear_error_and_nothing_is_written(tmp_path, capsys, how, message):
    damaged(tmp_path / "model.pt", how)
    assert main([str(tmp_path / "model.pt"), "--to", str(tmp_path / "out"), "--head_channels", "16"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("width", [0, -16, 48, 128])
def test_heads_that_do_not_divide_the_network_are_refused(tmp_path, capsys, width):
    command = [str(GOLDEN / "ddbm_tiny.pt"), "--to", str(tmp_path / "t"), f"--head_channels={width}"]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(rf"error: --head_channels={width}: attention on \d+ channels has no such heads\n", error), error
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({**OPTIONS, "beta_max": None}, "options.pkl does not hold the options of I2SB"),
        ({k: v for k, v in OPTIONS.items() if k != "interval"}, "options.pkl lacks the option 'interval'"),
        (["beta_max"], "options.pkl does not hold the options of I2SB"),
        ({**OPTIONS, "T": 2.0}, "options.pkl: t0, T = (0.0001, 2.0)"),
        ({**OPTIONS, "cond_x1": True, "add_x1_noise": True}, "it sees x_T without noise: no teacher does"),
    ],
)
def test_options_that_are_not_those_of_i2sb_are_named(tmp_path, capsys, options, message):
    source = i2sb_run(tmp_path / "run", weights(), weights())
    (tmp_path / "run" / "options.pkl").write_bytes(pickle.dumps(options))
    assert main([str(source), "--to", str(tmp_path / "out"), "--head_channels", "16"]) == 2
    assert message in capsys.readouterr().err


def test_what_the_file_does_not_say_is_marked_and_can_be_given(tmp_path, capsys):
    command = [str(GOLDEN / "ddbm_tiny.pt"), "--head_channels", "16", "--to"]
    assert main([*command, str(tmp_path / "usual")]) == 0
    printed = capsys.readouterr().out
    assert "name=ddbm_vp beta_d=2.0 beta_min=0.1 (not in the file: --bridge)" in printed
    assert "name=ddbm (not in the file: --parametrisation)" in printed
    bridge, parametrisation = {"name": "ddbm_ve", "sigma_max": 20.0}, {"name": "ddbm", "sigma_0": 0.3}
    given = ["--bridge", str(bridge), "--parametrisation", str(parametrisation)]
    assert main([*command, str(tmp_path / "other"), *given]) == 0
    assert "not in the file: --bridge" not in capsys.readouterr().out
    model = read_meta(tmp_path / "other")["model"]
    assert (model["bridge"], model["parametrisation"]) == (bridge, parametrisation)
    assert model["network"] == read_meta(tmp_path / "usual")["model"]["network"]
    for wrong, message in (("ddbm", "unknown bridge 'ddbm'"), ("{'name': 'ddbm_ve', 'beta': 1}", "no field 'beta'")):
        assert main([*command, str(tmp_path / "no"), "--bridge", wrong]) == 2
        assert message in capsys.readouterr().err


def test_an_option_that_would_do_nothing_is_refused(tmp_path, capsys):
    run = str(i2sb_run(tmp_path / "run", weights(), weights(), add_x1_noise=True))
    assert main([run, "--to", str(tmp_path / "t"), "--head_channels", "16"]) == 0
    assert "its x_T had noise of deviation 1 added" in capsys.readouterr().out
    file = str(tmp_path / "s.safetensors")
    assert main([str(tmp_path / "t"), "--to", file]) == 0
    for source, to, option, reason in (
        (run, "a", ["--x_T"], "is I2SB's, so that --x_T would do nothing"),
        (run, "a", ["--source", "adm"], "is I2SB's, so that --source would do nothing"),
        (file, "a", ["--head_channels", "16"], "says all about itself, so that --head_channels"),
        (file, "a", ["--attention", "new"], "says all about itself, so that --attention"),
        (str(GOLDEN / "ddbm_tiny.pt"), "a", ["--x_T"], "has input channels for x_T, so that --x_T"),
        (str(tmp_path / "t"), "b.safetensors", ["--x_T"], "--x_T is for checkpoints that become teachers"),
        (str(tmp_path / "t"), "b.safetensors", ["--bridge", "flow"], "--bridge is for checkpoints that become"),
    ):
        assert main([source, "--to", str(tmp_path / to), *option]) == 2
        assert reason in capsys.readouterr().err
        assert not (tmp_path / to).exists()


def test_paths_of_python_3_13_are_read(tmp_path):
    text = b"cpathlib._local\nPosixPath\n(S'results'\ntR."
    (tmp_path / "options.pkl").write_bytes(text)
    assert load_pickle(tmp_path / "options.pkl") == pathlib.PurePosixPath("results")


def test_a_network_without_its_last_layer_is_refused(tmp_path, capsys):
    state = {name: v for name, v in to_torch(weights()).items() if not name.startswith("out.2.")}
    torch_zip.save(tmp_path / "part.pt", state)
    assert main([str(tmp_path / "part.pt"), "--to", str(tmp_path / "out"), "--head_channels", "16"]) == 2
    assert "is not an ADM UNet: it lacks the parameter out.2.weight" in capsys.readouterr().err


def test_i2sb_without_its_options_and_with_another_ema(tmp_path, capsys):
    source = i2sb_run(tmp_path / "run", weights(), weights())
    (tmp_path / "run" / "options.pkl").unlink()
    assert main([str(source), "--to", str(tmp_path / "out")]) == 2
    assert "options.pkl: I2SB writes it beside latest.pt" in capsys.readouterr().err
    other = weights({**NETWORK, "multipliers": [1, 1]})
    source = i2sb_run(tmp_path / "run", weights(), other)
    assert main([str(source), "--to", str(tmp_path / "out")]) == 2
    assert "its EMA has 142 tensors, its network 144" in capsys.readouterr().err
    (tmp_path / "there").mkdir()
    for there in (str(tmp_path / "there"), "."):
        assert main([str(source), "--to", there]) == 2
        assert f"{there} exists: choose another folder" in capsys.readouterr().err


def test_an_adm_gets_input_channels_for_x_T(tmp_path, capsys):
    params = weights({**NETWORK, "out_channels": 6}, 3)
    torch_zip.save(tmp_path / "adm.pt", to_torch(params))
    command = [str(tmp_path / "adm.pt"), "--to", str(tmp_path / "start"), "--head_channels", "16", "--x_T"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "copies of those for x_t" in printed
    assert "use it by config.teacher.start" in printed
    found, meta = loaded(tmp_path / "start")
    first = params["input_blocks_0_0/kernel"]
    np.testing.assert_array_equal(found["input_blocks_0_0/kernel"], np.concatenate([first, first], axis=2))
    assert meta["model"]["network"]["conditional"]


def test_i2sb_s_network_alone_needs_its_options(tmp_path, capsys):
    source = i2sb_run(tmp_path / "run", weights(channels=6), weights(channels=6), cond_x1=True)
    torch_zip.save(source, {f"diffusion_model.{k}": v for k, v in to_torch(weights(channels=6)).items()})
    assert main([str(source), "--to", str(tmp_path / "out"), "--head_channels", "16"]) == 0
    assert "it has no EMA: took the raw weights" in capsys.readouterr().out
    model = read_meta(tmp_path / "out")["model"]
    assert model["bridge"]["name"] == "i2sb_table"
    assert model["network"]["conditional"]
    (tmp_path / "run" / "options.pkl").unlink()
    assert main([str(source), "--to", str(tmp_path / "other"), "--head_channels", "16"]) == 2
    assert "options.pkl: I2SB writes it" in capsys.readouterr().err


def test_adm_s_networks_that_differ_from_the_rest_are_known(tmp_path, monkeypatch):
    assert {key: (new["network"], new.get("bridge")) for key, new in published.OTHERS.items()} == {
        (192, (1, 2, 3, 4), 3): ({"legacy_attention": False}, {"name": "diffusion_cosine"}),
        (256, (1, 1, 2, 3, 4), 2): ({"head_channels": 0, "heads": 4}, None),
    }
    settings = {**NETWORK, "out_channels": 6}
    torch_zip.save(tmp_path / "a.pt", to_torch(weights(settings)))
    plain = recognise(tmp_path / "a.pt", head_channels=16)
    assert plain.source == "adm"
    assert plain.model["network"]["legacy_attention"]
    assert plain.model["bridge"] == {"name": "diffusion_linear"}
    for key, other in ((64, (192, (1, 2, 3, 4), 3)), (128, (256, (1, 1, 2, 3, 4), 2))):
        monkeypatch.setattr(published, "OTHERS", {(32, (1, 2), 1): published.OTHERS[other]})
        found = recognise(tmp_path / "a.pt", head_channels=16 if key == 64 else None).model
        assert found["network"]["legacy_attention"] == (key == 128)
        assert found["bridge"]["name"] == ("diffusion_cosine" if key == 64 else "diffusion_linear")
        assert found["network"].get("heads") == (None if key == 64 else 4)
        assert found["network"]["head_channels"] == (16 if key == 64 else 0)
        assert recognise(tmp_path / "a.pt", head_channels=16).model["network"]["head_channels"] == 16
        monkeypatch.undo()
    assert recognise(tmp_path / "a.pt", head_channels=16, attention="new").model["network"]["legacy_attention"] is False


def test_adm_s_networks_that_enlarge_are_no_teachers(tmp_path):
    torch_zip.save(tmp_path / "a.pt", to_torch(weights({**NETWORK, "out_channels": 6, "classes": 5}, channels=6)))
    with pytest.raises(UserError, match="six outputs, as ADM's networks, and 6 input channels"):
        recognise(tmp_path / "a.pt", head_channels=16)
    assert recognise(tmp_path / "a.pt", source="dbim", head_channels=16).source == "dbim"


def test_a_student_s_file_says_how_it_is_called(tmp_path, capsys):
    params = unflatten_dict(weights({**NETWORK, "conditional": False}), sep="/")
    model = {
        "network": {**NETWORK, "conditional": False},
        "bridge": {"name": "i2sb"},
        "parametrisation": {"name": "eps"},
        "student": {"t_start": 0.9, "student_steps": 1},
    }
    export_params(tmp_path / "export", params, {"model": model})
    assert main([str(tmp_path / "export"), "--to", str(tmp_path / "a.safetensors")]) == 0
    assert 'its metadata say: {"t_start": 0.9, "student_steps": 1}' in capsys.readouterr().out
    assert main([str(tmp_path / "a.safetensors"), "--to", str(tmp_path / "back")]) == 0
    assert "a student: {'t_start': 0.9, 'student_steps': 1}" in capsys.readouterr().out
    assert read_meta(tmp_path / "back")["model"]["student"] == model["student"]
