"""TensorBoard events through clu, whose writers load TensorFlow: imported only when a run starts."""

import os
from pathlib import Path
from typing import Any

from ibmd_jax.train.processes import is_first


def make_writer(folder: Path) -> Any:
    """A clu MetricWriter into `folder`/events, in a thread of its own, so that logging never delays a step.

    Of several processes only the first writes.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow greets on stderr otherwise
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    from clu import metric_writers

    if not is_first():
        return metric_writers.MultiWriter([])
    (folder / "events").mkdir(parents=True, exist_ok=True)
    return metric_writers.AsyncWriter(metric_writers.SummaryWriter(str(folder / "events")))
