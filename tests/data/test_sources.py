"""Sources from files: what they read, how they fit it, and what they say about what they cannot read."""

import errno
import itertools
import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import config_files
import numpy as np
import pytest
import tensorflow_datasets
from PIL import Image

from ibmd_jax.build import build
from ibmd_jax.core.errors import UserError
from ibmd_jax.core.types import Conditioning
from ibmd_jax.data import SOURCES, open_source
from ibmd_jax.data.builders import draw_normals
from ibmd_jax.data.images import fit_image, read_image
from ibmd_jax.data.pipeline import check_example, check_labels, examples
from ibmd_jax.data.prepare import main as prepare
from ibmd_jax.data.source import Options, split_indices
from ibmd_jax.data.tfds import open_builder
from ibmd_jax.train.job import run

RNG = np.random.default_rng(0)


def picture(path, size=(40, 30), mode="RGB", **settings):
    """A random image file; returns its RGB or grey array."""
    path.parent.mkdir(parents=True, exist_ok=True)
    bands = {"RGB": 3, "RGBA": 4, "L": 0, "LA": 2}[mode]
    array = RNG.integers(0, 256, (*size[::-1], bands) if bands else size[::-1], dtype=np.uint8)
    Image.fromarray(array, mode).save(path, **settings)
    return array


def folder_of(root, count, **settings):
    return [picture(root / f"{i:03d}.png", **settings) for i in range(count)]


def rows(source):
    return [source[i] for i in range(len(source))]


@pytest.fixture
def everything(tmp_path):
    """One URI of every kind of source but tfds, with the fields that its examples have."""
    folder_of(tmp_path / "photos", 5)
    folder_of(tmp_path / "A", 5)
    folder_of(tmp_path / "B", 5)
    np.savez(tmp_path / "x.npz", x_0=RNG.integers(0, 256, (5, 9, 9, 3), dtype=np.uint8), label=np.arange(5))
    return {
        "emoji": ("emoji", {"x_0", "label"}),
        "folder": (f"folder:{tmp_path}/photos", {"x_0"}),
        "corrupted": (f"corrupted:{tmp_path}/photos", {"x_T"}),
        "paired": (f"paired:{tmp_path}/A,{tmp_path}/B", {"x_0", "x_T"}),
        "npz": (f"npz:{tmp_path}/x.npz", {"x_0", "label"}),
    }


def test_every_source_gives_examples_of_one_shape(everything):
    assert everything.keys() | {"tfds"} == SOURCES.keys()
    for uri, fields in everything.values():
        for split, channels in itertools.product(("train", "test"), (3, 1)):
            found = rows(open_source(uri, split, Options(16, channels=channels)))[:8]
            assert {frozenset(example) for example in found} == {frozenset(fields)}
            for example in found:
                for name in fields & {"x_0", "x_T"}:
                    assert example[name].shape == (16, 16, channels)
                    assert example[name].dtype == np.uint8
                assert example.get("label", np.int32(0)).dtype == np.int32


def test_train_and_test_share_nothing_and_hold_everything():
    for count in (2, 5, 19, 20, 21, 100):
        train, test = (split_indices(count, split).tolist() for split in ("train", "test"))
        assert sorted(train + test) == list(range(count))
        assert len(test) == max(1, count // 20)
    with pytest.raises(UserError, match="1 example cannot be split"):
        split_indices(1, "train")


def test_the_subfolders_train_and_val_are_the_splits_and_others_the_classes(tmp_path):
    for split, name, count in (("train", "cat", 2), ("train", "ant", 3), ("val", "cat", 1)):
        folder_of(tmp_path / split / name, count)
    train, test = (open_source(f"folder:{tmp_path}", split, Options(8)) for split in ("train", "test"))
    assert [int(r["label"]) for r in rows(train)] == [0, 0, 0, 1, 1]
    assert [int(r["label"]) for r in rows(test)] == [1]
    folder_of(tmp_path / "val" / "bee", 1)
    with pytest.raises(UserError, match=f"val has the class 'bee', which {tmp_path}/train lacks"):
        open_source(f"folder:{tmp_path}", "test", Options(8))


def test_a_class_has_one_number_in_both_halves_of_a_folder(tmp_path):
    for name in "abcd":
        folder_of(tmp_path / name, 10)
    train, test = (open_source(f"folder:{tmp_path}", split, Options(8)) for split in ("train", "test"))
    assert sorted({int(r["label"]) for r in rows(train)}) == [0, 1, 2, 3]
    assert [int(r["label"]) for r in rows(test)] == [1, 3]  # every 20th


def test_linked_folders_are_read_and_hidden_or_empty_ones_are_no_classes(tmp_path):
    folder_of(tmp_path / "elsewhere", 2)
    folder_of(tmp_path / "photos" / "b", 1)
    (tmp_path / "photos" / "a").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "photos" / "b" / "loop").symlink_to(tmp_path / "photos")
    picture(tmp_path / "photos" / ".hidden" / "x.png")
    (tmp_path / "photos" / "Empty").mkdir()
    source = open_source(f"folder:{tmp_path}/photos", "train", Options(8))
    assert [int(row["label"]) for row in rows(source)] + [1] == [0, 0, 1]  # the last is held out


# --- reading ---------------------------------------------------------------------------------------------------


def test_images_of_all_modes_are_read(tmp_path):
    grey = picture(tmp_path / "grey.png", mode="L")
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png", 3), np.repeat(grey[:, :, None], 3, 2))
    rgba = picture(tmp_path / "rgba.png", mode="RGBA").astype(float)
    white = rgba[..., :3] * rgba[..., 3:] / 255 + 255 - rgba[..., 3:]
    np.testing.assert_allclose(read_image(tmp_path / "rgba.png", 3), white, atol=1)
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(read_image(tmp_path / "deep.png", 1), grey)
    (tmp_path / "deep.pgm").write_bytes(b"P5 40 30 65535\n" + (grey.astype(">u2") * 257).tobytes())
    np.testing.assert_array_equal(read_image(tmp_path / "deep.pgm", 1), grey)
    for kind in (np.int32, np.float32):  # 0 to 1, 0 to 255, or anything
        Image.fromarray(grey.astype(kind)).save(tmp_path / "deeper.tiff")
        with pytest.raises(UserError, match=r"cannot read the image .*deeper.tiff: its pixels have 32 bits"):
            read_image(tmp_path / "deeper.tiff", 1)
    frames = [Image.fromarray(np.full((4, 4, 3), v, np.uint8)) for v in (10, 200)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert np.asarray(read_image(tmp_path / "moving.gif", 3)).max() == 10
    Image.fromarray(grey).convert("P").save(tmp_path / "palette.gif", transparency=0)
    assert read_image(tmp_path / "palette.gif", 3).mode == "RGB"
    Image.fromarray(np.repeat(grey[:, :, None], 4, 2), "CMYK").save(tmp_path / "print.jpg")
    assert read_image(tmp_path / "print.jpg", 3).mode == "RGB"


def test_a_turned_photograph_stands_upright(tmp_path):
    array = picture(tmp_path / "plain.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to see it right
    Image.fromarray(array).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "turned.png", 3), np.rot90(array, -1))


# --- fitting ---------------------------------------------------------------------------------------------------


def test_damaged_exif_costs_no_image(tmp_path):
    array = picture(tmp_path / "x.png", size=(8, 8), exif=b"Exif\0\0garbage")
    np.testing.assert_array_equal(read_image(tmp_path / "x.png", 3), array)


def test_resize_and_crop_is_that_of_the_published_code():
    """Short side to the size, long side rounded down, centre with borders rounded half to even."""
    image = Image.fromarray(RNG.integers(0, 256, (30, 53, 3), dtype=np.uint8))
    small = np.asarray(image.resize((28, 16), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(fit_image(image, Options(16)), small[:, 6:22])
    small = np.asarray(image.transpose(Image.Transpose.ROTATE_90).resize((16, 28), Image.Resampling.BICUBIC))
    upright = image.transpose(Image.Transpose.ROTATE_90)
    np.testing.assert_array_equal(fit_image(upright, Options(16, filter="bicubic")), small[6:22])


def test_the_other_ways_to_fit():
    image = Image.fromarray(RNG.integers(0, 256, (20, 26, 3), dtype=np.uint8))
    array = np.asarray(image)
    expected = np.asarray(image.resize((16, 16), Image.Resampling.NEAREST))
    np.testing.assert_array_equal(fit_image(image, Options(16, fit="stretch"), "nearest"), expected)
    np.testing.assert_array_equal(fit_image(image, Options(16, fit="crop")), array[2:18, 5:21])
    padded = fit_image(image, Options(32, fit="pad"))
    np.testing.assert_array_equal(padded[6:26, 3:29], array)
    assert padded.sum() == array.sum()
    for fit, size, message in (("crop", 24, "26 x 20 pixels is smaller than the crop of 24"), ("pad", 22, "larger")):
        with pytest.raises(UserError, match=message):
            fit_image(image, Options(size, fit=fit))


def test_random_crops_are_cut_from_the_image_and_depend_on_its_number(tmp_path):
    whole = folder_of(tmp_path, 2, size=(40, 40))
    source = open_source(f"folder:{tmp_path}", "train", Options(8, fit="random-crop"))

    def crops(start_step):
        return next(examples(source, seed=1, batch_size=6, crop=8, start_step=start_step))[0]["x_0"]

    windows = np.lib.stride_tricks.sliding_window_view(whole[0], (8, 8, 3)).reshape(-1, 8, 8, 3)
    first = crops(0)
    assert all((windows == crop).all((1, 2, 3)).any() for crop in first)
    assert len(np.unique(first, axis=0)) > 1
    np.testing.assert_array_equal(crops(0), first)
    assert (crops(1) != first).any()


def test_a_test_image_is_cut_at_its_centre_where_training_cuts_anywhere(tmp_path):
    whole = [picture(tmp_path / f"{i}.png", size=(40 + i, 36)) for i in range(2)]
    test = open_source(f"folder:{tmp_path}", "test", Options(8, fit="random-crop"))
    np.testing.assert_array_equal(test[0]["x_0"], whole[1][14:22, 16:24])


# --- pairs -----------------------------------------------------------------------------------------------------


def test_pairs_by_name_and_side_by_side(tmp_path):
    A, B = folder_of(tmp_path / "A", 3, size=(16, 16)), folder_of(tmp_path / "B", 3, size=(16, 16))
    found = rows(open_source(f"paired:{tmp_path}/A,{tmp_path}/B", "train", Options(16)))
    for i, example in enumerate(found):
        np.testing.assert_array_equal(example["x_T"], A[i])
        np.testing.assert_array_equal(example["x_0"], B[i])
    for i in range(3):
        (tmp_path / "AB").mkdir(exist_ok=True)
        Image.fromarray(np.concatenate([A[i], B[i]], axis=1)).save(tmp_path / "AB" / f"{i}.png")
    for example, expected in zip(rows(open_source(f"paired:{tmp_path}/AB", "train", Options(16))), found, strict=True):
        np.testing.assert_array_equal(example["x_T"], expected["x_T"])
        np.testing.assert_array_equal(example["x_0"], expected["x_0"])


def test_a_half_that_is_too_small_is_named_by_its_file(tmp_path):
    for i in range(2):
        picture(tmp_path / f"{i}.png", size=(32, 16))
    refused(f"paired:{tmp_path}", r"0\.png: an image of 16 x 16 pixels is smaller than the crop", fit="crop", size=20)


def test_pairs_that_are_none_are_refused(tmp_path):
    pair = f"paired:{tmp_path}/A,{tmp_path}/B"
    for i in range(2):
        picture(tmp_path / "A" / f"{i}.png", size=(16, 16))
        picture(tmp_path / "B" / f"{i}.png", size=(32, 32))
    for fit, size in (("crop", 16), ("pad", 40)):
        refused(pair, r"A/0.png has \(16, 16\) pixels, .*B/0.png \(32, 32\): config.data.fit", fit=fit, size=size)
    assert rows(open_source(pair, "train", Options(16)))
    picture(tmp_path / "A" / "1.jpg")
    refused(pair, "A has 2 images named '1', which differ in their suffix alone")
    for split in ("train", "test"):
        folder_of(tmp_path / "C" / split, 2)
    refused(f"paired:{tmp_path}/C,{tmp_path}/B", "only one has a folder train")


def test_a_crop_of_arrays_needs_equal_sizes(tmp_path):
    arrays = {name: np.zeros((3, n, n, 3), np.uint8) for name, n in (("x_T", 12), ("x_0", 20))}
    np.savez(tmp_path / "x.npz", **arrays)
    source = open_source(f"npz:{tmp_path}/x.npz", "train", Options(8, fit="random-crop"))
    with pytest.raises(UserError, match=r"x_T and x_0 are of \(.*\) and \(.*\) pixels"):
        next(examples(source, seed=0, batch_size=2, crop=8))


def test_a_pair_is_mirrored_together(tmp_path):
    both = folder_of(tmp_path / "A", 3, size=(16, 16))
    shutil.copytree(tmp_path / "A", tmp_path / "B")
    source = open_source(f"paired:{tmp_path}/A,{tmp_path}/B", "train", Options(16))
    batch, _ = next(examples(source, seed=0, batch_size=20, flip=True))
    np.testing.assert_array_equal(batch["x_0"], batch["x_T"])
    upright = [(x == both).all((1, 2, 3)).any() for x in batch["x_0"]]
    assert 0 < sum(upright) < 20


# --- errors ----------------------------------------------------------------------------------------------------


def refused(uri, message, **options):
    with pytest.raises(UserError, match=message):
        rows(open_source(uri, "train", Options(16)._replace(**options)))


def test_wrong_places_and_options_are_named(tmp_path):
    (tmp_path / "empty").mkdir()
    folder_of(tmp_path / "train", 2)
    np.savez(tmp_path / "other.npz", images=np.zeros(3))
    np.savez(tmp_path / "uneven.npz", x_0=np.zeros((3, 4, 4, 3), np.uint8), x_T=np.zeros((2, 4, 4, 3), np.uint8))
    np.savez(tmp_path / "floats.npz", x_0=np.zeros((3, 4, 4, 3)))
    np.save(tmp_path / "pickled.npy", np.array([{}]), allow_pickle=True)
    refused("foldr:x", "unknown data source 'foldr'.*Did you mean 'folder'")
    refused("folder", "names nothing after folder: write folder:PLACE")
    refused("folder:/nowhere", "there is no folder /nowhere")
    (tmp_path / "empty" / "itself").symlink_to("itself")
    refused(f"folder:{tmp_path}/empty", "cannot read .*empty/itself: Too many levels.*; it is in the folder .*empty")
    (tmp_path / "empty" / "itself").unlink()
    refused(f"folder:{tmp_path}/empty", "empty holds no images")
    refused("paired:a,b,c", "give one folder, or two")
    refused(f"npz:{tmp_path}/none.npz", "there is no file .*none.npz")
    refused(f"npz:{tmp_path}/other.npz", "other.npz holds images: expected x_0 and/or x_T")
    refused(f"npz:{tmp_path}/uneven.npz", "its arrays differ in length")
    refused(f"npz:{tmp_path}/floats.npz", "type float64: expected uint8")
    refused(f"npz:{tmp_path}/pickled.npy", "cannot read .*pickled.npy")
    refused("emoji:triples", "unknown variant of the emoji set")
    refused("emoji", "unknown value of config.data.fit 'squeeze'", fit="squeeze")
    refused("emoji", "unknown filter in config.data 'bilinaer'.*'bilinear'", filter="bilinaer")
    refused("emoji", "config.data.channels = 2", channels=2)
    refused("emoji", "unknown value of config.data.on_error", on_error="ignore")
    refused("emoji", "config.data.on_error = skip: emoji has no files to pass over", on_error="skip")
    refused(f"paired:{tmp_path}/train", "random-crop is for single images", fit="random-crop")
    with pytest.raises(UserError, match="has a folder train, but none of test, val, validation"):
        open_source(f"folder:{tmp_path}", "test", Options(16))


def test_arrays_are_in_memory_once_until_their_file_changes(tmp_path):
    for value in (1, 2):
        np.savez(tmp_path / "x.npz", x_0=np.full((3, 16, 16, 3), value, np.uint8))
        os.utime(tmp_path / "x.npz", ns=(value, value))
        train, test = (open_source(f"npz:{tmp_path}/x.npz", split, Options(16)) for split in ("train", "test"))
        assert train.arrays["x_0"] is test.arrays["x_0"]
        assert (train[0]["x_0"] == value).all()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("label", np.array(["cat", "dog", "cat"]), r"label has shape \(3,\) and type <U3: expected integers \[N\]"),
        ("label", np.array([0.0, 0.9, 1.0]), "label .* type float64: expected integers"),
        ("label", np.zeros((3, 1), int), r"label has shape \(3, 1\)"),
        ("text", np.array(["a", "b", "c"]), r"text .*: expected numbers \[N, D\]"),
        ("text", np.zeros(3), r"text has shape \(3,\)"),
        ("x_0", np.uint8(3), r"x_0 has shape \(\) and type uint8: expected uint8 \[N, H, W, C\]"),
    ],
)
def test_arrays_that_are_no_examples_are_named(tmp_path, name, value, message):
    np.savez(tmp_path / "x.npz", **{"x_0": np.zeros((3, 16, 16, 3), np.uint8), name: value})
    refused(f"npz:{tmp_path}/x.npz", rf"x\.npz: {message}")


def test_images_without_a_partner_are_listed(tmp_path):
    folder_of(tmp_path / "A", 14)
    folder_of(tmp_path / "B", 2)
    refused(f"paired:{tmp_path}/A,{tmp_path}/B", "no partner: 002, 003, .*, 011 and 2 more")


def test_an_unreadable_image_is_named_or_skipped_and_counted(tmp_path, caplog):
    good = folder_of(tmp_path, 3, size=(16, 16))
    (tmp_path / "001.png").write_bytes((tmp_path / "001.png").read_bytes()[:100])
    refused(f"folder:{tmp_path}", "cannot read the image .*001.png.*set config.data.on_error=skip")
    stream = examples(open_source(f"folder:{tmp_path}", "train", Options(16)), seed=0, batch_size=8)
    with pytest.raises(UserError, match=r"001\.png"):
        list(itertools.islice(stream, 4))
    source = open_source(f"folder:{tmp_path}", "train", Options(16, on_error="skip"))
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            found = rows(source)
    assert [record.message[:26] for record in caplog.records] == ["skipped image no. 1 of 2: "]
    np.testing.assert_array_equal(found[1]["x_0"], good[0])  # the next one in its place
    for file in tmp_path.iterdir():
        file.write_bytes(b"")
    refused(f"folder:{tmp_path}", "none of the 2 images is readable", on_error="skip")


def test_an_image_that_the_file_system_refuses_is_not_skipped(tmp_path, caplog):
    folder_of(tmp_path, 3, size=(16, 16))
    source = open_source(f"folder:{tmp_path}", "train", Options(16, on_error="skip"))
    (tmp_path / "001.png").unlink()
    with pytest.raises(UserError, match=r"there is no file .*001.png$"):
        rows(source)
    assert not caplog.records


def test_what_a_source_lacks_is_found_at_the_start(tmp_path):
    x, label = np.zeros((4, 4, 3), np.uint8), np.int32(3)
    check_example({"x_0": x, "label": label}, True, Conditioning(4), "s")
    check_example({"x_0": x, "text": np.zeros(8)}, True, Conditioning(0, 8), "s")
    for example, corrupts, conditioning, message in (
        (
            {"x_T": x},
            True,
            (0, 0),
            "no clean images to corrupt: take another source, or set config.data.corruption to none",
        ),
        ({"x_0": x}, False, (0, 0), "clean images alone: set config.data.corruption"),
        ({"x_0": x, "x_T": x}, True, (0, 0), "brings its own x_T"),
        ({"x_0": x}, True, (5, 0), "s has no labels, which config.network.classes = 5"),
        ({"x_0": x}, True, (0, 8), "s has no text, which config.network.embedding = 8 .* emoji:names or an npz"),
        ({"x_0": x, "text": np.zeros(4)}, True, (0, 8), r"embedding = 8: the text of s has shape \(4,\); set it to 4"),
    ):
        with pytest.raises(UserError, match=message):
            check_example(example, corrupts, Conditioning(*conditioning), "s")
    check_labels({"label": np.array([0, 3])}, 4)
    for bad in (np.array([0, 4]), np.array([-1, 2])):
        with pytest.raises(UserError, match=r"label (4|-1) is out of range: config.network.classes = 4 has 0 ... 3"):
            check_labels({"label": bad}, 4)


# --- damaged files ---------------------------------------------------------------------------------------------

FUZZ = """
import resource, sys, time
from pathlib import Path
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
from ibmd_jax.core.errors import UserError
from ibmd_jax.core.types import Conditioning
from ibmd_jax.data.images import fit_image, read_image
from ibmd_jax.data.source import Options
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
slowest, refused = 0.0, 0
for file in sorted(Path(sys.argv[1]).iterdir()):
    begin = time.perf_counter()
    try:
        image = read_image(file, 3)
        assert fit_image(image, Options(16)).shape == (16, 16, 3)
    except UserError as error:
        assert file.name in str(error) or "pixels" in str(error), error
        refused += 1
    slowest = max(slowest, time.perf_counter() - begin)
print(refused, slowest, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def bomb(width, height):
    """A PNG whose header declares a size that its data does not have."""
    import io
    import struct
    import zlib

    file = io.BytesIO()
    Image.new("RGB", (1, 1)).save(file, "PNG")
    data = bytearray(file.getvalue())
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    return bytes(data)


def test_500_damaged_files_cost_neither_time_nor_memory(tmp_path):
    rng, formats, n = np.random.default_rng(1), ["png", "jpeg", "webp", "gif", "bmp", "tiff"], 0
    valid = {}
    for kind in formats:
        file = tmp_path / f"valid.{kind}"
        Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(file)
        valid[kind] = file.read_bytes()
        file.unlink()
    for i in range(480):
        kind = formats[i % len(formats)]
        data = bytearray(valid[kind])
        if i % 3 == 0:
            data = data[: rng.integers(len(data))]
        else:
            places = rng.integers(len(data) if i % 3 == 1 else 64, size=rng.integers(1, 20))
            for place in places:
                data[place] ^= 1 << rng.integers(8)
        (tmp_path / f"{n:03d}.{kind}").write_bytes(data)
        n += 1
    for width, height in ((65535, 65535), (2**31 - 1, 2**31 - 1), (20000, 20000), (8000, 9000), (0, 5)):
        (tmp_path / f"{n:03d}.png").write_bytes(bomb(width, height))
        n += 1
    for content in (b"", b"\\x89PNG", b"%PDF-1.4", b"<svg/>", bytes(10_000)):
        (tmp_path / f"{n:03d}.jpg").write_bytes(content)
        n += 1
    Image.new("L", (60000, 60000)).save(tmp_path / f"{n:03d}.png", compress_level=1)  # a true bomb, 3.6 GB
    for kind in formats[:5] + formats[:4]:
        n += 1
        other = formats[(formats.index(kind) + 1) % 6]  # a wrong name does not matter
        (tmp_path / f"{n:03d}.{other}").write_bytes(valid[kind])
    assert n + 1 == 500
    result = subprocess.run([sys.executable, "-c", FUZZ, str(tmp_path)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    refused_files, slowest, kilobytes = result.stdout.split()
    assert 150 < int(refused_files) < 495  # a flipped bit in the pixels leaves a readable image
    assert float(slowest) < 2
    assert int(kilobytes) < 1_000_000


# --- TensorFlow Datasets ---------------------------------------------------------------------------------------

FASHION_PACKAGE, FASHION = "dataset-fashion-mnist", Path("/usr/share/datasets/fashion-mnist")


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    """A folder for prepared datasets, for this process alone."""
    folder = tmp_path_factory.mktemp("tfds")
    kept = os.environ.get("TFDS_DATA_DIR")
    os.environ["TFDS_DATA_DIR"] = str(folder)
    yield folder
    os.environ.pop("TFDS_DATA_DIR") if kept is None else os.environ.update(TFDS_DATA_DIR=kept)


def pix2pix(root):
    for split, count in (("train", 3), ("val", 2)):
        for i in range(count):
            picture(root / split / f"{i}_AB.png", size=(32, 16))


def test_an_unprepared_dataset_says_how_to_prepare_it(datasets):
    refused("tfds:edges2handbags", "is not prepared in .*: run python -m ibmd_jax.data.prepare edges2handbags --from")
    refused("tfds:no_such_set", "dataset no_such_set: .*not found")


def test_a_dataset_of_another_format_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    pix2pix(tmp_path / "e2h")
    open_builder("edges2handbags")  # registers ours
    builder = tensorflow_datasets.builder("edges2handbags", data_dir=tmp_path, file_format="tfrecord")
    config = tensorflow_datasets.download.DownloadConfig(manual_dir=str(tmp_path / "e2h"))
    builder.download_and_prepare(download_config=config)
    refused("tfds:edges2handbags", "in another format than ArrayRecord.*: set TFDS_DATA_DIR to another folder")


def test_archives_without_a_name_of_their_own_are_looked_for_under_the_last_part_of_their_url(tmp_path, capsys):
    assert prepare(["imagenet2012", "--from", str(tmp_path)]) == 2
    assert "lacks ILSVRC2012_img_" in capsys.readouterr().err


def test_edges2handbags_from_its_original_files(datasets, tmp_path, capsys):
    pix2pix(tmp_path / "e2h")
    assert prepare(["edges2handbags", "--from", str(tmp_path / "e2h")]) == 0
    train, test = (open_source("tfds:edges2handbags", s, Options(16)) for s in ("train", "test"))
    assert (len(train), len(test)) == (3, 2)
    files = {f.read_bytes(): f for f in sorted((tmp_path / "e2h" / "train").iterdir())}
    halves = [np.asarray(Image.open(f)) for f in files.values()]
    for example in rows(train):
        assert any((example["x_T"] == h[:, :16]).all() and (example["x_0"] == h[:, 16:]).all() for h in halves)
    refused("tfds:edges2handbags", "example 0 of tfds:edges2handbags: .* smaller than the crop", fit="crop", size=20)
    refused("tfds:edges2handbags", "none of the 3 images is readable", fit="crop", size=20, on_error="skip")
    assert prepare(["edges2handbags", "--from", str(tmp_path / "nowhere")]) == 2
    assert "there is no folder" in capsys.readouterr().err


def test_a_full_disk_stops_preparing_with_one_line(tmp_path, capsys, monkeypatch):
    import tensorflow_datasets

    def full(self, **settings):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    pix2pix(tmp_path / "e2h")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    monkeypatch.setattr(tensorflow_datasets.core.DatasetBuilder, "download_and_prepare", full)
    assert prepare(["edges2handbags", "--from", str(tmp_path / "e2h")]) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(r"error: cannot write the dataset edges2handbags to .*: No space left on device\n", error), (
        error
    )


def test_diode_draws_normals_as_the_published_code(datasets, tmp_path):
    for i in range(2):
        place = tmp_path / "train" / "outdoor" / "scene_00001" / "scan_00001"
        picture(place / f"{i}.png", size=(512, 384))
        np.save(place / f"{i}_normal.npy", RNG.normal(size=(384, 512, 3)).astype(np.float32))
    picture(place / "without.png")
    assert prepare(["diode_normals", "--from", str(tmp_path)]) == 0
    assert len(open_source("tfds:diode_normals", "train", Options(256))) == 2
    normals = np.zeros((256, 256, 3))
    normals[0, 0], normals[0, 1] = (0.5, -0.25, 1.0), (0.0, 0.0, 0.0)
    drawn = draw_normals(normals)
    assert drawn[0, 0].tolist() == [int(255 * 0.375), 0, int(255 * 0.625)]  # (n + 0.25) / 2
    assert drawn[0, 1].tolist() == [0, 0, 0]  # unknown: at the minimum


@pytest.fixture(scope="module")
def fashion_files(tmp_path_factory):
    """The four original files: Debian's package, installed or unpacked for this test."""
    if FASHION.is_dir():
        return FASHION
    folder = tmp_path_factory.mktemp("debian")
    try:
        subprocess.run(
            ["apt-get", "download", FASHION_PACKAGE], cwd=folder, check=True, capture_output=True, timeout=120
        )
        subprocess.run(["dpkg", "-x", *folder.glob("*.deb"), folder], check=True, capture_output=True)
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"{FASHION_PACKAGE} is not installed, and apt-get could not fetch it: {error}")
    return folder / FASHION.relative_to("/")


@pytest.mark.usefixtures("lenient", "one_device")
def test_a_teacher_trains_on_fashion_mnist(datasets, fashion_files, capsys, tmp_path):
    """Prepared without network, by the public builder, from the original files."""
    assert prepare(["fashion_mnist", "--from", str(fashion_files)]) == 2
    assert "its checksum differs" in capsys.readouterr().err
    assert prepare(["fashion_mnist", "--from", str(fashion_files), "--repacked"]) == 0
    source = open_source("tfds:fashion_mnist", "train", Options(32, channels=1, fit="pad"))
    assert len(source) == 60000
    batch, _ = next(examples(source, seed=0, batch_size=64))
    assert batch["x_0"].shape == (64, 32, 32, 1)
    assert set(batch["label"]) <= set(range(10))

    config = config_files.get_config()
    config.data.update(source="tfds:fashion_mnist", channels=1, fit="pad")
    with config.unlocked():
        config.network.out_channels = 1
    config.teacher.steps = 20
    config.evaluate.update(features="none", examples=8, batch_size=8)
    run(build(config), tmp_path / "run", "teacher")
    assert (tmp_path / "run" / "teacher" / "export").is_dir()


@pytest.mark.parametrize("kind", ["paired", "npz"])
def test_pairs_whose_places_differ_are_refused(tmp_path, kind):
    def pair(size_T, size_0):
        if kind == "npz":
            images = {name: np.zeros((2, h, w, 3), np.uint8) for name, (w, h) in (("x_T", size_T), ("x_0", size_0))}
            np.savez(tmp_path / "data.npz", **images)
            return f"npz:{tmp_path}/data.npz"
        for i in range(2):
            picture(tmp_path / "A" / f"{i}.png", size=size_T)
            picture(tmp_path / "B" / f"{i}.png", size=size_0)
        return f"paired:{tmp_path}/A,{tmp_path}/B"

    uri = pair((96, 64), (128, 64))
    refused(uri, r"\(96, 64\) pixels, .* \(128, 64\): config.data.fit = 'resize-crop' .*; take stretch")
    assert rows(open_source(uri, "train", Options(16, fit="stretch")))
    assert rows(open_source(pair((48, 32), (95, 64)), "train", Options(16)))  # the same but for rounding
    refused(pair((48, 32), (96, 64)), "config.data.fit = 'crop' .*; take resize-crop or stretch", fit="crop")
    assert rows(open_source(pair((48, 32), (48, 32)), "train", Options(16, fit="crop")))


def test_a_test_set_in_subfolders_of_unlabelled_images_has_no_labels(tmp_path):
    folder_of(tmp_path / "train", 2)
    folder_of(tmp_path / "test" / "sub", 1)
    for split, number in (("train", 2), ("test", 1)):
        found = rows(open_source(f"folder:{tmp_path}", split, Options(16)))
        assert [set(example) for example in found] == [{"x_0"}] * number
