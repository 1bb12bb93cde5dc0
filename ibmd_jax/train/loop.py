"""The training loop. Its order is fixed: picture of the old state, save it, next batch, step, log the previous step.

A run is a function of (config, step): keys are derived from the step, batches are numbered, so a stopped run that is
started again ends with the same bits. SIGTERM and Ctrl-C finish the steps at hand, two at most, save, and stop.
"""

import functools
import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

from ibmd_jax.core.errors import UserError
from ibmd_jax.core.streams import step_key
from ibmd_jax.core.types import Array, Batch, Params
from ibmd_jax.methods.base import Method
from ibmd_jax.train.checkpoint import Checkpoints, export_params
from ibmd_jax.train.processes import is_first, preempted, progress
from ibmd_jax.train.sharding import abstract_state
from ibmd_jax.train.writers import make_writer

log = logging.getLogger(__name__)


class Schedule(NamedTuple):
    """How often a run logs, saves and draws, in steps; how many checkpoints it keeps; what FSDP splits.

    profile: steps to trace, after the first PROFILE_AFTER. None of it changes the trained parameters.
    """

    log_every: int = 10
    save_every: int = 100
    picture_every: int = 100
    keep: int = 3
    fsdp_min_size: int = 2**20
    profile: int = 0


PROFILE_AFTER = 5  # the first steps compile, and fill the queue
OUTSIDE = 0.1  # how far pictures may be outside [-1, 1] before that is told; those of good students are 0.01


class Stopped(Exception):
    """A signal asked the run to stop. saved: the step of the newest checkpoint; code: the exit status to give back."""

    def __init__(self, stage: str, step: int, number: int, saved: int):
        name = signal.Signals(number).name
        kept = "saved" if saved == step else f"but only step {saved} is saved"
        super().__init__(f"stopped by {name} at {stage} step {step}, {kept}: the same command goes on from there")
        self.code = 128 + number


class NotFinite(UserError):
    """The loss or a gradient is NaN or infinite."""


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collects SIGTERM and SIGINT in a list instead of dying; a second Ctrl-C interrupts at once.

    Several processes have to stop together: there SIGTERM is left to JAX, which tells them all, see `preempted`.
    """
    received: list[int] = []
    if jax.process_count() > 1:
        yield received
        return

    def handler(number: int, frame: Any) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)

    before = {s: signal.signal(s, handler) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for s, old in before.items():
            signal.signal(s, old)


class Trace:
    """A trace of some steps by jax.profiler, which TensorBoard and ui.perfetto.dev show."""

    def __init__(self, folder: Path, steps: int):
        self.folder, self.steps, self.running = folder, steps if is_first() else 0, False

    def at(self, step: int) -> None:
        """To be called before each step, counted from the first of this run."""
        if self.steps and step == PROFILE_AFTER:
            jax.profiler.start_trace(str(self.folder), create_perfetto_trace=True)
            self.running = True
        elif step == PROFILE_AFTER + self.steps:
            self.stop()

    def stop(self) -> None:
        if self.running:
            self.running = False
            try:
                jax.profiler.stop_trace()
            except (OSError, RuntimeError) as error:
                log.error("no profile in %s (%s); the run goes on", self.folder, error)
                return
            log.info("wrote a profile to %s: open its perfetto_trace.json.gz at ui.perfetto.dev", self.folder)


def mean_info(infos: list[Any]) -> dict[str, float]:
    """Means over some steps of an Info's scalars, and of its vectors as name/0, name/1, ...; NaN entries left out."""
    found = {}
    for name in infos[0]._fields:
        values = np.stack([np.asarray(getattr(i, name)) for i in infos])
        columns = {name: values} if values.ndim == 1 else {f"{name}/{i}": v for i, v in enumerate(values.T)}
        found |= {key: float(np.nanmean(v)) for key, v in columns.items() if not np.isnan(v).all()}
    return found


def fit(
    stage: str,
    method: Method,
    start: Callable[[Any, Any], Any],
    frozen: Params | None,
    batches: Callable[[int], Iterator[Batch]],
    *,
    steps: int,
    seed: int,
    folder: Path,
    mesh: Mesh,
    identity: dict[str, Any],
    schedule: Schedule,
    model: dict[str, Any],
    given: Params | None = None,
    picture: Callable[[Params, str], dict[str, float]] | None = None,
    also_export: dict[str, Callable[[Any], Params]] | None = None,
) -> Params:
    """Trains one stage to `steps`, from its newest checkpoint if there is one; returns and exports the result.

    Args:
        stage: its name, in logs and random streams.
        start: (frozen, given) -> the method's first state; called inside jit.
        given: parameters to start from, where `start` needs some beside the frozen ones; deleted once it has run.
        batches: step -> iterator over batches from that step on, each already on its devices.
        folder: gets checkpoints/, export/ and TensorBoard events.
        identity: saved with every checkpoint, and required to be equal on resume (the teacher's fingerprint).
        model: the sections of the configuration that the exported parameters belong to, saved with them.
        picture: called as picture(exported parameters, label) every schedule.picture_every steps; what it returns is
            logged. All processes call it, so all must return from it, or fail: see pictures.expendable.
        also_export: other parameters of the last state to write beside export/, by the name of their folder.
    Raises:
        Stopped on a signal; NotFinite; UserError for checkpoints of another network or identity.
    """
    checkpoints = Checkpoints(folder / "checkpoints", schedule.keep)
    abstract = abstract_state(mesh, schedule.fsdp_min_size, start, frozen, given)
    sharding = jax.tree.map(lambda x: x.sharding, abstract)
    restored = checkpoints.restore(abstract)
    if restored is None:
        first, state = 0, jax.jit(start, out_shardings=sharding)(frozen, given)
    else:
        first, state, meta = restored
        if meta["identity"] != identity:
            raise UserError(
                f"{folder} was trained with {meta['identity']}, not {identity}: use another --workdir, or remove it"
            )
        log.info("%s: resuming at step %d of %d", stage, first, steps)
    for x in jax.tree.leaves(given):  # as large as a network, and the caller holds them until the run is over
        x.delete()

    replicated = NamedSharding(mesh, PartitionSpec())
    # An argument of the update, so that runs which differ in it alone share one compiled program.
    key = jax.device_put(np.asarray(jax.random.key_data(jax.random.key(seed))), replicated)

    @functools.partial(jax.jit, donate_argnums=0, out_shardings=(sharding, replicated))
    def update(state: Any, frozen: Params | None, batch: Batch, key: Array, step: Array) -> tuple[Any, Any]:
        return method.step(state, frozen, batch, step_key(jax.random.wrap_key_data(key), stage, step))

    export = jax.jit(method.export)
    stream = batches(first)
    writer = make_writer(folder)
    pending: list[tuple[int, Any]] = []  # infos of finished steps that were not looked at yet

    fix = f"Lower the learning rate, or set the clip, of the optimizers in config.{stage}, in a new --workdir."

    def not_finite(what: str) -> NotFinite:
        newest = checkpoints.wait()
        kept = (
            f"the last good checkpoint is step {newest} in {checkpoints.folder}" if newest else "nothing was saved yet"
        )
        return NotFinite(f"{stage}: {what}; {kept}. {fix}")

    def flush(bar: tqdm, running: int = 0) -> None:
        """Reads the pending infos, for which it waits; but for those of the newest steps, which are `running`."""
        done = pending[: len(pending) - running]
        if not done:
            return
        numbers, infos = [n for n, _ in done], jax.device_get([i for _, i in done])
        del pending[: len(done)]
        for n, info in zip(numbers, infos, strict=True):
            # In a vector over parts of [0, T], NaN stands for a part without an example.
            bad = [name for name, v in info._asdict().items() if np.isnan(v).all() or np.isinf(v).any()]
            if bad:
                raise not_finite(f"{bad[0]} is not finite at step {n}")
        mean = mean_info(infos)
        writer.write_scalars(numbers[-1] + 1, mean)
        bar.set_postfix(loss=f"{mean['loss']:.4f}", refresh=False)

    def save(step: int, bar: tqdm) -> None:
        flush(bar)
        try:
            checkpoints.save(step, state, {"identity": identity, "stage": stage})
        except FloatingPointError as error:
            raise not_finite(f"a parameter is not finite after step {step}") from error

    def draw(params: Params, step: int) -> None:
        found = picture(params, f"{stage}_{step:06d}")
        writer.write_scalars(step, found)
        if step and found.get("outside", 0) > OUTSIDE:
            far = f"the pictures' values are {found['outside']:.2f} outside [-1, 1] on average"
            log.warning("%s: after step %d %s: it diverges, or began at random. %s", stage, step, far, fix)

    trace = Trace(folder / "profile", schedule.profile)
    try:
        with _signals() as received, progress(steps, stage, "step", first) as bar:
            for step in range(first, steps):
                if len(pending) > 1:  # the device has one step more to do; a signal is not to wait for many
                    jax.block_until_ready(pending[-2][1])
                if preempted():
                    received.append(signal.SIGTERM)
                if picture and not received and step % schedule.picture_every == 0:
                    draw(export(state), step)
                if received or (step % schedule.save_every == 0 and step > first):
                    save(step, bar)
                    if received:
                        raise Stopped(stage, step, received[0], checkpoints.wait())
                trace.at(step - first)
                try:
                    batch = next(stream)
                except Exception:  # an image that cannot be read; several processes would have to save together
                    if step > first and jax.process_count() == 1:
                        save(step, bar)
                    raise
                # A step waits for nothing from the host; the mesh is what methods.base.gathered asks for.
                with jax.set_mesh(mesh), jax.transfer_guard("disallow"):
                    state, info = update(state, frozen, batch, key, jax.device_put(np.uint32(step), replicated))
                pending.append((step, info))
                if step % schedule.log_every == 0:
                    flush(bar, running=1)
                bar.update()
            save(steps, bar)
            params = export(state)
            if picture:
                draw(params, steps)
            meta = {"identity": identity, "stage": stage, "step": steps, "model": model}
            for name, part in (also_export or {}).items():
                export_params(folder / name, jax.jit(part)(state), meta)
            export_params(folder / "export", params, meta)
            if preempted():
                received.append(signal.SIGTERM)
            if received:
                raise Stopped(stage, steps, received[0], steps)
        return params
    finally:
        trace.stop()
        checkpoints.close()
        writer.close()
