"""The main job with three seeds: mean and spread of its table (about half an hour a seed on 2 CPU cores).

    python -m benchmarks.inpaint_seeds --runs runs/seeds

A seed whose report is there already is not run again. Writes benchmarks/results/inpaint.json, inpaint.md and
inpaint_samples.png (seed 0).
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/seeds"), help="folder of the runs, one a seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    reports = []
    for seed in args.seeds:
        folder = args.runs / str(seed)
        if not (folder / "report.json").exists():
            command = ["-m", "ibmd_jax.main", "--config=configs/inpaint.py", f"--config.seed={seed}"]
            subprocess.run([sys.executable, *command, f"--workdir={folder}"], check=True)
        reports.append(json.loads((folder / "report.json").read_text()))
    summary = summarise(reports, args.seeds)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "inpaint.json").write_text(json.dumps(summary, indent=1) + "\n")
    (RESULTS / "inpaint.md").write_text(markdown(summary))
    shutil.copy(args.runs / str(args.seeds[0]) / "samples.png", RESULTS / "inpaint_samples.png")
    print(markdown(summary))


def summarise(reports: list[dict], seeds: list[int]) -> dict:
    """Every row's values by seed, and what the runs have in common."""
    rows = []
    for versions in zip(*(r["rows"] for r in reports), strict=True):
        values = {name: [v["metrics"][name] for v in versions] for name in versions[0]["metrics"]}
        values["images_per_second"] = [v["images_per_second"] for v in versions]
        rows.append({"label": versions[0]["label"], "nfe": versions[0]["nfe"], "values": values})
    common = {k: reports[0][k] for k in ("test_images", "devices", "jax")}
    times = {k: [r["seconds"].get(k) for r in reports] for k in ("train_teacher", "distill")}
    return {"seeds": seeds, "rows": rows, "speed_up": [r["speed_up"] for r in reports], "seconds": times, **common}


def cell(values: list[float]) -> str:
    """mean ± standard deviation, or the value itself where there is only one."""
    spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{spread}"


def markdown(summary: dict) -> str:
    """The table of mean ± standard deviation over the seeds, and the ratios that the job is judged by."""
    names = list(summary["rows"][0]["values"])
    seeds = " ".join(str(s) for s in summary["seeds"])
    lines = [
        "# `configs/inpaint.py`",
        "",
        f"{summary['test_images']} held-out emoji, centre hole of half the side; features `emoji` (not Inception).",
        f"Seeds: {seeds}; mean ± standard deviation where there are several.",
        f"Made by `python -m benchmarks.inpaint_seeds --seeds {seeds}`.",
        "",
        "| model | NFE | " + " | ".join({"images_per_second": "images/s"}.get(n, n.upper()) for n in names) + " |",
        "|---" * (len(names) + 2) + "|",
    ]
    for row in summary["rows"]:
        cells = [cell(row["values"][n]) for n in names]
        lines.append(f"| {row['label']} | {row['nfe']} | " + " | ".join(cells) + " |")
    students = [row for row in summary["rows"] if row["label"] == "student"]
    lines += ["", "FID over the teacher's, each seed:", ""]
    lines += ["| over | " + " | ".join(f"student at {row['nfe']} NFE" for row in students) + " |"]
    lines += ["|---" * (len(students) + 1) + "|"]
    for row in summary["rows"][len(students) :]:
        ratios = [zip(student["values"]["fid"], row["values"]["fid"], strict=True) for student in students]
        cells = [", ".join(f"{s / t:.2f}" for s, t in pairs) for pairs in ratios]
        lines.append(f"| {row['label']} at {row['nfe']} NFE | " + " | ".join(cells) + " |")
    lines += [
        "",
        "Images/s, student at 1 NFE over the teacher at 100: " + ", ".join(f"{v:.0f}" for v in summary["speed_up"]),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
