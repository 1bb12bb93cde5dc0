"""TensorBoard events through clu, whose writers load TensorFlow: imported only when a run starts."""

import logging
import os
from pathlib import Path
from typing import Any

from ibmd_jax.train.processes import is_first

log = logging.getLogger(__name__)


class Expendable:
    """A clu MetricWriter, as far as the loop needs it. One of `errors`, as on a full disk, is logged and
    ends the writing, not the run: the file may then end with half a record, beyond which nobody reads. None writes
    nothing from the start.
    """

    def __init__(self, writer: Any, folder: Path, errors: tuple[type[Exception], ...]):
        self._writer, self._folder, self._errors = writer, folder, errors

    def _try(self, what: str, *args: Any) -> None:
        if self._writer is None:
            return
        try:
            getattr(self._writer, what)(*args)
        except self._errors as error:
            self._writer = None
            log.error(
                "the curves in %s end here (%s); the run goes on, and its next start writes curves again: free some "
                "space, or make the folder writable",
                self._folder,
                " ".join(str(error).split())[:300],
            )

    def write_scalars(self, step: int, scalars: dict[str, float]) -> None:
        self._try("write_scalars", step, scalars)

    def flush(self) -> None:
        self._try("flush")

    def close(self) -> None:
        self._try("close")


def make_writer(folder: Path) -> Any:
    """A clu MetricWriter into `folder`/events, in a thread of its own, so that logging never delays a step.

    What cannot be written is lost, and the run goes on. Of several processes only the first writes.
    """
    events = folder / "events"
    if not is_first():
        return Expendable(None, events, ())
    try:
        events.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        log.error("there will be no curves in %s (%s); the run goes on", events, error.strerror)
        return Expendable(None, events, ())
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow greets on stderr otherwise
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    from clu import metric_writers
    from tensorflow.errors import OpError  # which has nothing to do with OSError

    # Inside of the AsyncWriter, which would raise the errors of its thread in the loop.
    return metric_writers.AsyncWriter(Expendable(metric_writers.SummaryWriter(str(events)), events, (OSError, OpError)))
