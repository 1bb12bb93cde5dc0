"""What the README shows is run: its Python example, its commands on the quick configuration, and its links exist."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.quality import best_teachers
from ibmd_jax.bridges import BRIDGES
from ibmd_jax.build.methods import sampling_of
from ibmd_jax.core.errors import UserError
from ibmd_jax.methods.base import WEIGHTS
from ibmd_jax.preflight.__main__ import CHIPS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = [
    c.split("#")[0].strip() for block in re.findall(r"```sh\n(.*?)```", README, re.S) for c in block.splitlines()
]


def test_the_python_example_restores_images():
    code, _ = re.findall(r"```python\n(.*?)```", README, re.S)
    code += "\nassert restored.shape == x_T.shape and bool(jax.numpy.isfinite(restored).all())\n"
    assert len([line for line in code.split("\n\n")[2].splitlines() if line.strip()]) <= 12
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=250)


def test_the_set_up_commands_are_the_ones_that_ci_runs():
    set_up = "python3 -m venv .venv && . .venv/bin/activate && pip install -e ."
    assert f"{set_up} && python -m ibmd_jax.main --config=configs/inpaint.py" in COMMANDS
    assert f"{set_up}[dev] && pytest" in COMMANDS


@pytest.mark.timeout(600)
def test_the_commands_run_in_order_from_an_empty_folder(environment, tmp_path):
    """The main command runs in its quick variant here; the full one is timed in benchmarks/results."""
    for name in ("configs", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (50, 40), "green").save(tmp_path / "photos" / "me.jpg")
    ours = [c for c in COMMANDS if c.startswith("python -m ibmd_jax")]
    names = ["main", "main", "main", "main", "main", "convert", "data.preview", "preflight"]
    assert [c.split()[2].removeprefix("ibmd_jax.") for c in ours] == names
    for command in ours:
        args = [sys.executable, *command.split()[1:]]
        done = subprocess.run(args, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280)
        assert done.returncode in ((0, 1) if "--help" in command else (0,)), done.stderr
    run = tmp_path / "runs" / "inpaint-quicktest"
    assert (run / "report.json").exists()
    made = [*(f"{i:05d}" for i in range(32)), *(f"me_{i}" for i in range(3))]
    assert sorted(p.stem for p in (run / "samples").iterdir()) == made
    assert (tmp_path / "teachers" / "tiny").is_dir()


def test_the_ratios_in_the_text_are_those_of_the_results():
    found = json.loads((ROOT / "benchmarks/results/inpaint.json").read_text())["rows"]
    varied = {(row["label"], row["nfe"]): row["values"]["diversity"] for row in found}
    ratios = [a / b for a, b in zip(varied["student", 1], varied["teacher", 100], strict=True)]
    assert f"vary by {min(ratios):.2f} to {max(ratios):.2f} of what the teacher's do" in README.replace("\n", " ")
    methods = (ROOT / "ibmd_jax/methods/README.md").read_text().replace("\n", " ")
    assert "is {:.2f}, {:.2f} and {:.2f} of the teacher's at 100, by seed".format(*ratios) in methods


def test_the_table_of_teachers_that_see_x_T_is_that_of_the_results():
    found = json.loads((ROOT / "benchmarks/results/quality.json").read_text())
    tasks = {
        "sketches (three seeds)": "sketch",
        "inpainting": "inpaint",
        "Twemoji to Noto": "twemoji-noto",
        "4x super-resolution": "sr4x",
        "JPEG": "jpeg-5",
        "inpainting clothes (Fashion-MNIST)": "fashion-inpaint",
    }
    rows = re.findall(r"^\| ([^|]+) \| ([\d., ]+) \| ([\d., ]+) \| ([\d., ]+) \|$", README, re.M)
    assert {name for name, *_ in rows} == tasks.keys()
    fours = []
    for name, *columns in rows:
        wanted = []
        for seed in found[f"{tasks[name]} ddbm"].values():
            one = next(row["metrics"] for row in seed if row["label"] == "IBMD")
            best = {row["nfe"]: row["metrics"] for row in best_teachers(seed) if row["label"].startswith("teacher")}
            fours += [
                r["metrics"]["fid"] / best[100]["fid"] for r in seed if (r["label"], r["nfe"]) == ("IBMD, 4 steps", 4)
            ]
            fids = [one["fid"] / best[nfe]["fid"] for nfe in (100, 10)]
            wanted.append([f"{x:.2f}" for x in (*fids, one["diversity"] / best[100]["diversity"])])
        assert [tuple(column.split(", ")) for column in columns] == list(zip(*wanted, strict=True)), name
    assert f"four steps, the student has {min(fours):.2f} to {max(fours):.2f} of its teacher's FID" in README


def test_links_lead_somewhere():
    for page in [ROOT / "README.md", ROOT / "benchmarks/README.md", *(ROOT / "ibmd_jax").rglob("README.md")]:
        for target in re.findall(r"\]\((?!http)([^)]+)\)", page.read_text()):
            assert (page.parent / target).exists(), (page, target)


def test_the_answers_of_the_benchmarks_are_those_of_their_results():
    text, results = (ROOT / "benchmarks/README.md").read_text(), ROOT / "benchmarks/results"

    def of(name):
        return json.loads((results / f"{name}.json").read_text())

    torch = [of(f"throughput{part}")["iterations_per_second_over_torch"] for part in ("", "_2_devices", "_ynnpack")]
    assert "[{:.2f}](results/throughput.json); [{:.2f}]".format(*torch) in text
    assert f"| {torch[2]:.2f} |" in text
    parts, forward = of("loop")["partitioning"]["over_one"], of("forward")["median_seconds"]
    saved = [-100 * parts[n] for n in ("2", "4", "8")]
    assert "{:.0f} %, {:.0f} % and {:.0f} % less time than".format(*saved) in text
    added = [100 * of("loop")[stage]["overhead"] for stage in ("teacher", "distill")]
    assert "[{:.1f} % of a teacher's step, {:.1f} % of an iteration](results/loop.json)".format(*added) in text
    speeds = [forward[name] / forward["ours"] for name in ("eager", "compile")]
    assert "{:.2f} times eager's speed, {:.2f} times torch.compile's".format(*speeds) in text
    iteration = of("iteration")
    found = iteration["flops_over_passes"], iteration["seconds_over_passes"]
    assert "{:.4f} of their operations, {:.2f} of their time".format(*found) in text
    for file, kind in (("v5e-4x4_8", "v5e"), ("v5e-4x4", "v5e"), ("v5e-2x4", "v5e"), ("v6e-4x4_16", "v6e")):
        chip, updates = CHIPS[kind], of(f"preflight_{file}")["updates"]
        estimate = sum(u["count"] * sum(u["cycles"].values()) for u in updates) / chip.clock
        floor = sum(u["count"] * u["flops"] for u in updates) / chip.flops
        least = sum(u["count"] * max(u["flops"] / chip.flops, u["bytes"] / chip.bandwidth) for u in updates)
        (line,) = (line for line in text.splitlines() if f"(results/preflight_{file}.json)" in line)
        assert line.endswith(f"GiB | {estimate / floor:.2f} | {estimate / least:.2f} |")
    ended = of("interruptions")
    assert f"at most {ended['most_steps_computed_again']} steps again" in text
    assert f"stopped in {ended['longest_stop_seconds']:.1f} s" in text
    tasks = of("several")["0"].values()
    told, blind = (
        [row["metrics"]["fid"] / rows[0]["metrics"]["fid"] for rows in tasks for row in rows if row["label"] == label]
        for label in ("IBMD, told the task", "IBMD, blind")
    )
    told, blind = ("{:.2f}, {:.2f}, {:.2f}".format(*ratios) for ratios in (told, blind))
    assert f"FID {told} of each teacher's at 100, told the task; {blind} blind" in text

    def mean(rows, label, nfe, measure=lambda row: row["metrics"]["fid"]):
        return np.mean([measure(row) for row in rows if (row["label"], row["nfe"]) == (label, nfe)])

    rows = of("leaderboard")
    ours = [mean(rows, name, 1) / mean(rows, "teacher", 64) for name in ("IBMD", "Di-Bregman, jensen shannon")]
    assert "FID {:.2f} (IBMD) and {:.2f} (Di-Bregman, Jensen-Shannon) of the teacher's at 64".format(*ours) in text
    keys = ("training", "text encoder"), ("held-out", "text encoder"), ("held-out", "words")
    *parts, words = ([row for row in of("text_to_emoji") if (row["names"], row["text"]) == key] for key in keys)
    named, fids = (
        [mean(part, "Di-Bregman", 1, m) / mean(part, "teacher", 50, m) for part in parts]
        for m in (lambda row: row["accuracy"], lambda row: row["metrics"]["fid"])
    )
    found = "{:.2f} and {:.2f} of the teacher's own names, with {:.2f} and {:.2f} times its FID".format(*named, *fids)
    assert found in text
    assert (
        "FID from {:.1f} to {:.1f} on names".format(*(mean(part, "teacher", 50) for part in (words, parts[1]))) in text
    )


def test_the_sampler_in_its_readme_and_the_weights_in_theirs_exist():
    bridge = BRIDGES["ddbm_vp"]()
    (spec,) = re.findall(r"config.evaluate.sampler = (\{.*?\})", (ROOT / "ibmd_jax/samplers/README.md").read_text())
    sampling_of(ast.literal_eval(spec), bridge)
    for name in ("mask", "cond", "trajectory"):
        with pytest.raises(UserError, match=f"has no field '{name}': it takes eta, clip, time_grid"):
            sampling_of({"name": "dbim", name: True}, bridge)
    (listed,) = re.findall(r"lambda\(t\), by name: (.*) \|", (ROOT / "ibmd_jax/methods/README.md").read_text())
    assert set(re.findall(r"`(\w+)`", listed)) == {*WEIGHTS, "native", "native_ten_to_1"}


def test_bridges_whose_time_does_not_end_at_1_are_those_that_are_named():
    others = {name for name, make in BRIDGES.items() if make().T != 1}
    assert others == {"edm", "ddbm_ve"}
    assert "On edm, whose T is 80," in (ROOT / "configs/generate.py").read_text()
    assert re.findall(r"T = sigma_max", (ROOT / "ibmd_jax/bridges/README.md").read_text()) == ["T = sigma_max"] * 2
