"""Several processes as one: how they find each other, and what only the first of them does.

Every process runs the same program on the same configuration; arrays are global. Host code that writes files, or
prints, asks `is_first`; what it writes is read by the others after a `barrier`.
"""

import contextlib
import itertools
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from typing import Any, TextIO

import jax
import numpy as np
from jax.experimental import multihost_utils
from tqdm import tqdm

from ibmd_jax.core.cli import refresh_seconds
from ibmd_jax.core.errors import UserError
from ibmd_jax.core.types import Array

PATIENCE = 30  # seconds; a network's file system may show a new file late


def connect(coordinator: str, processes: int, process: int) -> None:
    """Joins the other processes; before anything else of JAX is used.

    Args:
        coordinator: HOST:PORT where process 0 can be reached; "auto": SLURM, a TPU pod or another cluster that JAX
            knows says who is who; "": this process is alone.
        processes, process: how many there are, and the number of this one, where a coordinator is named.
    Raises: UserError if the numbers do not fit, or the others are not found.
    """
    if not coordinator and (processes, process) != (1, 0):  # each would train alone, all in one workdir
        raise UserError(f"--processes={processes} --process={process} need --coordinator=HOST:PORT, the same for all")
    if not coordinator:
        return
    if coordinator != "auto" and not 0 <= process < processes:
        raise UserError(f"--process={process} of --processes={processes}: it must be from 0 to --processes - 1")
    named = () if coordinator == "auto" else (coordinator, processes, process)
    try:
        jax.distributed.initialize(*named, heartbeat_timeout_seconds=30)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"cannot join the other processes by --coordinator={coordinator}: {error}") from error
    if jax.process_count() == 1:  # its training has handlers of its own
        end_on_sigterm()


def end_on_sigterm() -> None:
    """Where nothing asks whether it was `preempted`, SIGTERM ends this process, as it does any other one.

    JAX, once it has joined other processes, does no more than note the signal.
    """
    if jax.distributed.is_initialized():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextlib.contextmanager
def partners() -> Iterator[None]:
    """Of several processes, ends this one at once when it fails, so that the others hear of it: an orderly exit would
    wait for them, while they wait for its part of a computation. What JAX raises most often is that another is gone.
    """
    try:
        yield
    except Exception as error:
        if jax.process_count() == 1:
            raise
        who = f"process {jax.process_index()} of {jax.process_count()}"
        if isinstance(error, jax.errors.JaxRuntimeError):
            reason = " ".join(str(error).split())[:200]
            print(f"error: {who} failed, or lost another ({reason}): start all to go on", file=sys.stderr)
        elif isinstance(error, UserError):
            print(f"error: {error}", file=sys.stderr)
        else:
            traceback.print_exception(error)
            print(f"error: {who} failed: start all to go on", file=sys.stderr)
        sys.stderr.flush()
        os._exit(2 if isinstance(error, UserError) else 1)


def say(text: str) -> None:
    """Prints once, whatever the number of processes."""
    if is_first():
        with contextlib.suppress(OSError):  # a full disk under the log, or a reader that has gone
            print(text, flush=True)


def is_first() -> bool:
    """Whether this process writes files and prints."""
    return jax.process_index() == 0


class _Lossy:
    """A stream whose errors, as of a full disk under a log, cost what is written and not the run."""

    def __init__(self, file: TextIO):
        self._file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            self._file.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._file.flush()


def progress(total: int, desc: str, unit: str, initial: int = 0) -> tqdm:
    """A bar of the first process: on a terminal one that moves, in a log file a line now and then."""
    line = "{desc}: {percentage:3.0f}% {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]\n"
    return tqdm(
        total=total,
        desc=desc,
        unit=unit,
        initial=initial,
        file=_Lossy(sys.stderr),
        mininterval=refresh_seconds(),
        miniters=1,  # else another thread adds lines of its own
        bar_format=None if sys.stderr.isatty() else line,
        disable=not is_first(),
    )


def barrier(name: str) -> None:
    """Waits until every process is here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def highest(here: int) -> int:
    """The highest of the numbers of all processes, which must all call it: what one has found, all act upon."""
    return int(here) if jax.process_count() == 1 else int(multihost_utils.process_allgather(np.int32(here)).max())


# Calls of `preempted`. JAX says yes at one number only, the largest so far and one: steps would pass it by, which start
# anywhere where a run is resumed, and again from 0 in the next stage.
_calls = itertools.count(1)


def preempted() -> bool:
    """Whether any process was asked to stop by SIGTERM; all call this equally often, and hear of it in one call."""
    return jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(next(_calls))


def of_first(number: int) -> int:
    """What the first process gives, on all; they must all call it."""
    return number if jax.process_count() == 1 else int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def to_host(x: Array) -> np.ndarray:
    """The whole of an array, on every process."""
    if isinstance(x, jax.Array) and not x.is_fully_addressable and not x.is_fully_replicated:
        return multihost_utils.process_allgather(x, tiled=True)
    return np.asarray(x)
