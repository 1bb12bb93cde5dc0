"""Command line: trains a teacher, distils it, evaluates both, in one folder.

python -m ibmd_jax.main --config=configs/inpaint.py
"""

import logging
import os
import sys
from pathlib import Path

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from ibmd_jax.core.cli import parse
from ibmd_jax.core.errors import UserError

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Configuration file, with an optional variant: configs/inpaint.py:quicktest.", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run. Default: runs/ and the configuration's name.")
MODES = ["all", "teacher", "distill", "evaluate", "sample", "compare"]  # those of train/job.py, which is slow to import
_MODE = flags.DEFINE_enum(
    "mode",
    "all",
    MODES,
    "What to do; all: teacher, distill and evaluate, each skipped where its result is there. evaluate: student and "
    "teacher, or the teacher alone where there is no student yet.",
)
_INPUT = flags.DEFINE_string(
    "input", "", "A folder of images that --mode=sample restores, in the place of the test images."
)
_PROFILE = flags.DEFINE_integer(
    "profile",
    0,
    "Trace so many steps with jax.profiler, into WORKDIR/STAGE/profile. The first five of a run are not "
    "traced: with no more steps than those left, nothing is written.",
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", "", "Of several processes: HOST:PORT of the first, or auto on SLURM and TPU pods. See launch/."
)
_PROCESSES = flags.DEFINE_integer("processes", 1, "How many processes there are, where --coordinator names a host.")
_PROCESS = flags.DEFINE_integer("process", 0, "The number of this one, from 0.")
flags.mark_flag_as_required("config")


def main(argv: list[str]) -> int:
    """Runs the job; returns the exit status: 0 done, 2 bad input, 128 + n stopped by signal n."""
    absl_logging.get_absl_handler().setFormatter(logging.Formatter("%(message)s"))
    logging.getLogger().setLevel(logging.INFO)
    for noisy in ("absl", "jax", "orbax"):
        logging.getLogger(noisy).setLevel(logging.ERROR)

    try:
        return _run()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from the last checkpoint", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(130)  # threads of a reading that was interrupted would complain, if Python ended in order


def _run() -> int:
    from ibmd_jax.build import build  # after the flags, so that --help and a wrong flag answer at once
    from ibmd_jax.train.job import run
    from ibmd_jax.train.loop import Stopped
    from ibmd_jax.train.processes import connect, is_first, partners

    connect(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    if not is_first():
        logging.getLogger().setLevel(logging.WARNING)
    config = _CONFIG.value
    with partners():
        try:
            folder = Path(_WORKDIR.value or Path("runs") / config.name).expanduser()
            job = build(config, trained=folder if _INPUT.value and _MODE.value == "sample" else None)
            job = job._replace(schedule=job.schedule._replace(profile=_PROFILE.value), input=_INPUT.value)
            run(job, folder, _MODE.value)
        except Stopped as stop:  # by all processes, in order
            print(stop, file=sys.stderr)
            return stop.code
    return 0


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
