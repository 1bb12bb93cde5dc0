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
    "config",
    None,
    "Configuration file, with an optional variant: configs/inpaint.py:quicktest. Default: that of the run in "
    "--workdir.",
    lock_config=True,
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
_OUTPUT = flags.DEFINE_string("output", "", "Where --mode=sample writes. Default: WORKDIR/samples.")
_STEPS = flags.DEFINE_integer(
    "steps",
    0,
    "Network evaluations an image by --mode=sample. Default: all that the student can take.",
    lower_bound=0,
)
_DRAWS = flags.DEFINE_integer(
    "draws", 1, "Restorations of each image by --mode=sample: NAME_0.png, NAME_1.png, ...", lower_bound=1
)
_PROFILE = flags.DEFINE_integer(
    "profile",
    0,
    "Trace so many steps with jax.profiler, into WORKDIR/STAGE/profile. The first five of a run are not "
    "traced: with no more steps than those left, nothing is written.",
    lower_bound=0,
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", "", "Of several processes: HOST:PORT of the first, or auto on SLURM and TPU pods. See launch/."
)
_PROCESSES = flags.DEFINE_integer("processes", 1, "How many processes there are, where --coordinator names a host.")
_PROCESS = flags.DEFINE_integer("process", 0, "The number of this one, from 0.")


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
    from ibmd_jax.build import build, config_of  # after the flags, so that --help and a wrong flag answer at once
    from ibmd_jax.train.job import Restoring, run
    from ibmd_jax.train.loop import Stopped
    from ibmd_jax.train.processes import connect, is_first, partners

    connect(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    if not is_first():
        logging.getLogger().setLevel(logging.WARNING)
    asked = Restoring(_INPUT.value, _OUTPUT.value, _STEPS.value, _DRAWS.value)
    with partners():
        try:
            if _CONFIG.value is None and _WORKDIR.value is None:
                raise UserError("give --config=FILE, such as configs/inpaint.py, or the --workdir of a run. See --help")
            config = _CONFIG.value or config_of(Path(_WORKDIR.value).expanduser())
            folder = Path(_WORKDIR.value or Path("runs") / config.name).expanduser()
            job = build(config, trained=folder if asked.input and _MODE.value == "sample" else None)
            job = job._replace(schedule=job.schedule._replace(profile=_PROFILE.value), restoring=asked)
            run(job, folder, _MODE.value)
        except Stopped as stop:  # by all processes, in order
            print(stop, file=sys.stderr)
            return stop.code
    return 0


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
