"""Memory and time of converting a full-size checkpoint of random weights, in the format of the original.

    python -m benchmarks.convert --folder runs/full --preset i2sb-256

Writes a state_dict of the preset's network (2.2 GB for those of 256 pixels) as torch.save would, converts it in a
process of its own, and writes benchmarks/results/convert.json.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks import torch_zip
from ibmd_jax.convert.__main__ import shapes_of
from ibmd_jax.convert.names import to_torch
from ibmd_jax.networks import NETWORKS
from ibmd_jax.networks.adm import PRESETS

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="for the checkpoint and the teacher; needs 5 GB")
    parser.add_argument("--preset", choices=list(PRESETS), default="ddbm-diode-256")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    source, target = args.folder / "model.pt", args.folder / "teacher"
    network = NETWORKS[args.preset]()
    fields = ("multipliers", "channels", "blocks", "attention", "classes", "legacy_attention")
    shapes = shapes_of({name: getattr(network, name) for name in fields}, 3 if args.preset.startswith("i2sb") else 6)
    if not source.exists():
        rng = np.random.default_rng(0)
        torch_zip.save(source, to_torch({n: rng.standard_normal(s, np.float32) * 0.02 for n, s in shapes.items()}))
    shutil.rmtree(target, ignore_errors=True)
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-m", "ibmd_jax.convert", str(source), "--to", str(target)], check=True)
    seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024  # kilobytes on Linux
    size = 4 * sum(int(np.prod(s)) for s in shapes.values())
    summary = {"preset": args.preset, "bytes": size, "peak_bytes": peak, "ratio": peak / size, "seconds": seconds}
    (RESULTS / "convert.json").write_text(json.dumps(summary, indent=1) + "\n")
    print(summary)


if __name__ == "__main__":
    main()
