"""2,000 iterations of a small demo run, ended at 20 random moments, against the same run left alone.

    python -m benchmarks.interruptions

Each moment is a random step; the signal is SIGTERM or kill -9, drawn at random. Compared are the bits of the exported
parameters, how many steps were computed twice, how long a stop took, and the files that are left. Saving goes on beside
the next steps, so that kill -9 may come before a checkpoint is complete: then the steps since the one before it are
computed again. About 10 minutes on 2 CPU cores. Writes benchmarks/results/interruptions.json.
"""

import argparse
import json
import os
import pty
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
TEACHER, DISTILL, SAVE_EVERY = 1500, 500, 50
ARGS = [
    "--config=configs/inpaint.py:quicktest",
    f"--config.teacher.steps={TEACHER}",
    f"--config.distill.steps={DISTILL}",
    f"--config.schedule.save_every={SAVE_EVERY}",
    "--config.schedule.picture_every=500",
    "--config.evaluate.nfe=(1,)",
    "--config.evaluate.examples=32",
]
PROGRESS = re.compile(r"(teacher|distill):[^\r\n]*?\| (\d+)/\d+ \[")


class Run(NamedTuple):
    """A run on a terminal of its own, where its bar moves each second: in a file it would each half minute."""

    process: subprocess.Popen
    terminal: int


def start(folder: Path) -> Run:
    command = [sys.executable, "-m", "ibmd_jax.main", *ARGS, f"--workdir={folder}"]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(folder.parent / "compiled")}
    ours, its = pty.openpty()
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=its, stderr=its)
    os.close(its)
    return Run(process, ours)


def follow(run: Run, until: float) -> tuple[int, int, str]:
    """Reads until the run has made `until` steps of both stages, or ends: the first and last step seen, the output."""
    text, first, last = "", -1, 0
    while True:
        try:
            chunk = os.read(run.terminal, 65536)
        except OSError:  # the run has ended, and with it its side of the terminal
            break
        text += chunk.decode(errors="replace")
        for stage, step in PROGRESS.findall(text[-4000:]):
            done = int(step) + (TEACHER if stage == "distill" else 0)
            first, last = (done if first < 0 else first), max(last, done)
        if last >= until:
            break
    return first, last, text


def fingerprints(folder: Path) -> dict[str, list[int]]:
    """What the exports say of the bits of their parameters."""
    found = {}
    for stage in ("teacher", "distill"):
        meta = json.loads((folder / stage / "export" / "meta" / "metadata").read_text())
        found[stage] = meta["fingerprint"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    draw = random.Random(args.seed)
    targets = sorted(draw.uniform(1, TEACHER + DISTILL - 1) for _ in range(args.kills))
    with tempfile.TemporaryDirectory() as base:
        whole, folder, kills = Path(base, "whole"), Path(base, "killed"), []
        begin = time.perf_counter()
        run = start(whole)
        assert follow(run, float("inf"))[1] == TEACHER + DISTILL
        assert run.process.wait() == 0
        seconds, reached = time.perf_counter() - begin, 0
        for target in targets:
            run, number = start(folder), draw.choice([signal.SIGTERM, signal.SIGKILL])
            first, last, _ = follow(run, target)
            run.process.send_signal(number)
            sent = time.perf_counter()
            rest = follow(run, float("inf"))[1]
            kills.append({"signal": number.name, "step": max(last, rest), "code": run.process.wait()})
            kills[-1]["seconds"] = time.perf_counter() - sent
            kills[-1]["again"] = max(0, reached - first)  # steps that were computed and lost by the kill before
            reached = kills[-1]["step"]
            print(kills[-1], flush=True)
        run = start(folder)
        first, last, text = follow(run, float("inf"))
        assert run.process.wait() == 0, text[-2000:]
        left = (p for pattern in ("*tmp*", "*.new", "unreadable") for p in folder.rglob(pattern))
        orphans = sorted(str(p.relative_to(folder)) for p in left)
        summary = {
            "iterations": TEACHER + DISTILL,
            "save_every": SAVE_EVERY,
            "seconds_alone": seconds,
            "bits_are_equal": fingerprints(whole) == fingerprints(folder),
            "most_steps_computed_again": max([k["again"] for k in kills] + [max(0, reached - first)]),
            "longest_stop_seconds": max(k["seconds"] for k in kills),
            "temporary_files": orphans,
            "kills": kills,
        }
    (ROOT / "benchmarks" / "results" / "interruptions.json").write_text(json.dumps(summary, indent=1) + "\n")
    print(json.dumps({k: v for k, v in summary.items() if k != "kills"}, indent=1))


if __name__ == "__main__":
    main()
