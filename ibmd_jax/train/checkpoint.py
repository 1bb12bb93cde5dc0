"""Checkpoints behind one file: Orbax's CheckpointManager for training states, single exports for parameters.

Whatever is saved carries its shapes and a fingerprint of its content. A checkpoint that is truncated, or whose bits
changed, is never used. Loading reads arrays and JSON; it executes nothing.
"""

import logging
import shutil
import time
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from ibmd_jax.core.arrays import examine, fingerprint
from ibmd_jax.core.errors import UserError
from ibmd_jax.core.types import Params
from ibmd_jax.train.processes import PATIENCE, barrier, highest, is_first, of_first

log = logging.getLogger(__name__)
Meta = dict[str, Any]
GOOD, BAD, LATER = range(3)  # what may come of reading; of several processes, the highest counts


class Unreadable(Exception):
    """A checkpoint is missing a part, truncated or corrupt."""


class NotNow(UserError):
    """A checkpoint could not be read for a reason that may pass, such as a file server's."""


def shapes(tree: Params) -> dict[str, list[int]]:
    """Name -> shape of every leaf, e.g. {"student/conv_in/kernel": [3, 3, 12, 32]}."""
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): list(x.shape) for path, x in flat}


def _check_shapes(found: dict[str, list[int]], wanted: dict[str, list[int]], path: Path) -> None:
    for name in [*wanted, *found]:
        if found.get(name) != wanted.get(name):
            old, new = (tuple(d[name]) if name in d else "absent" for d in (found, wanted))
            raise UserError(
                f"{path} is a checkpoint of another network: {name} is {old} in the checkpoint and {new} in the "
                f"configured network. Set config.network as it was for the checkpoint, or use another checkpoint."
            )


def _read(path: Path, abstract: Params) -> tuple[Params, Meta]:
    """Verified content of one checkpoint. Raises Unreadable, or UserError for other shapes: every process or none."""
    meta = _part(path, "meta", ocp.args.JsonRestore())
    try:
        found, saved = meta["shapes"], meta["fingerprint"]
    except (KeyError, TypeError) as error:
        raise Unreadable(_first_line(error)) from error
    _check_shapes(found, shapes(abstract), path)
    tree = _part(path, "tree", ocp.args.StandardRestore(abstract))
    if highest(fingerprint(tree) != saved):
        raise Unreadable("its content differs from the fingerprint saved with it")
    return tree, meta


def _part(path: Path, name: str, args: Any) -> Any:
    """One item of a checkpoint. What may be over soon is no fault of the checkpoint's: NotNow.

    Each process reads its own part of the arrays; then all agree. Hence a handler alone: ocp.Checkpointer adds a
    barrier, in which a process that cannot read would leave the others.
    """
    item, outcome, reason = None, GOOD, "in another process"
    handler = ocp.CompositeCheckpointHandler()
    try:
        item = handler.restore(path, args=ocp.args.Composite(**{name: args}))[name]
    except (FileNotFoundError, NotADirectoryError) as error:
        outcome, reason = BAD, _first_line(error)
    except (OSError, MemoryError, jax.errors.JaxRuntimeError) as error:
        outcome, reason = LATER, _first_line(error)
    except Exception as error:  # of Orbax and of what it reads with, which have no one type
        outcome, reason = BAD, _first_line(error)
    finally:
        handler.close()
    outcome = highest(outcome)
    if outcome == LATER:
        raise NotNow(f"cannot read {path} now ({reason}): nothing was changed, start again")
    if outcome == BAD:
        raise Unreadable(reason)
    return item


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0][:160]}"


class Checkpoints:
    """The training states of one stage, newest first; saving is asynchronous and atomic."""

    def __init__(self, folder: Path, keep: int):
        self.folder = folder.absolute()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            create=True,
            cleanup_tmp_directories=True,
            # If one process cannot write, the others wait so long for it, and the run for them.
            async_options=ocp.AsyncOptions(timeout_secs=600),
        )
        try:
            self._manager = ocp.CheckpointManager(self.folder, options=options, item_names=("tree", "meta"))
        except OSError as error:
            raise UserError(f"cannot write to {self.folder} ({_first_line(error)}): make it writable") from error
        # Orbax would ask for preemption with numbers of its own, between those of processes.preempted: JAX says yes to
        # one number only, which those would make it pass by.
        self._manager.reached_preemption = lambda step: False

    def save(self, step: int, state: Params, extra: Meta) -> None:
        """Saves a state under its step. Returns once the arrays are copied; the files follow in the background.

        Where they cannot be written, as on a full disk, an error says so, and a later save may succeed.

        Raises: FloatingPointError if a value is NaN or infinite; nothing is saved then.
        """
        self.wait()
        if step in self._manager.all_steps():
            return
        checksums, finite = examine(state)
        if not finite:
            raise FloatingPointError(f"the state of step {step} is not finite")
        meta = {**extra, "shapes": shapes(state), "fingerprint": checksums}
        args = ocp.args.Composite(tree=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta))
        try:
            self._manager.save(step, args=args)
        except Exception as error:  # Orbax has no one type for what a file system can refuse
            self._not_written(error)

    def wait(self) -> int:
        """Waits for the files of the last save; the newest step that is there, 0 for none."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            self._not_written(error)
        return self._manager.latest_step() or 0

    def _not_written(self, error: Exception) -> None:
        self._manager.reload()  # Orbax counts what it was about to remove for this one as removed
        newest = self._manager.latest_step()
        kept = f"step {newest} is still there" if newest else "none is there"
        log.error(
            "a checkpoint could not be written to %s (%s); %s. The run goes on and will try again: free some space, or "
            "make the folder writable",
            self.folder,
            _first_line(error),
            kept,
        )
        if is_first():
            for partial in self.folder.glob("*.orbax-checkpoint-tmp"):
                shutil.rmtree(partial, ignore_errors=True)

    def restore(self, abstract: Params) -> tuple[int, Params, Meta] | None:
        """The newest readable state as (step, state, meta); None where nothing was saved yet.

        Unreadable checkpoints are named in a warning, moved to the folder `unreadable` beside them, and passed over.

        Args: abstract: ShapeDtypeStructs with shardings.
        Raises: UserError if there were checkpoints but none is readable, if the newest cannot be read at the moment, or
            if it is of another network.
        """
        aside = self.folder.parent / "unreadable"
        while (step := self._newest()) is not None:
            path = self.folder / str(step)
            try:
                return step, *_read(path, abstract)
            except Unreadable as error:
                earlier = max((s for s in self._manager.all_steps() if s < step), default=None)
                fallback = "there is no earlier one" if earlier is None else f"falling back to step {earlier}"
                log.warning("checkpoint %s is unreadable (%s); %s", path, error, fallback)
                if is_first():
                    aside.mkdir(exist_ok=True)
                    shutil.rmtree(aside / str(step), ignore_errors=True)
                    shutil.move(path, aside / str(step))
                barrier("a checkpoint set aside")
                self._manager.reload()
        if aside.is_dir():
            raise UserError(
                f"no checkpoint in {self.folder} is readable, see {aside}: remove {self.folder.parent} to start over"
            )
        return None

    def _newest(self) -> int | None:
        """The newest step that the first process sees. A file server may show it to the others later: they wait.

        Raises: NotNow if they do not see it then. To go on from an earlier one, each from its own, would be worse.
        """
        newest = self._manager.latest_step()
        step = of_first(-1 if newest is None else newest)
        if step < 0:
            return None
        path, end = self.folder / str(step), time.monotonic() + PATIENCE
        while not path.exists() and time.monotonic() < end:
            time.sleep(0.5)
        if highest(not path.exists()):
            raise NotNow(f"not every process sees the checkpoint {path}: start again when all do")
        self._manager.reload()
        return step

    def close(self) -> None:
        """Waits for the files of the last save."""
        self.wait()
        self._manager.close()


def export_params(folder: Path, params: Params, extra: Meta) -> None:
    """Writes parameters and their metadata to `folder`; what is there is replaced once they are complete.

    Raises: UserError where it cannot be written.
    """
    folder = folder.absolute()
    beside = folder.with_name(f"{folder.name}.new")
    largest = max(x.nbytes for x in jax.tree.leaves(params))
    # One leaf at a time and uncompressed (weights hardly shrink): an export takes little memory beside its parameters.
    tree = ocp.PyTreeCheckpointHandler(save_concurrent_gb=(largest + 2**20) / 1e9, use_compression=False)
    handler = ocp.CompositeCheckpointHandler(tree=tree, meta=ocp.JsonCheckpointHandler())
    with ocp.Checkpointer(handler) as checkpointer:
        meta = {**extra, "shapes": shapes(params), "fingerprint": fingerprint(params)}
        args = ocp.args.Composite(tree=ocp.args.PyTreeSave(params), meta=ocp.args.JsonSave(meta))
        try:
            checkpointer.save(beside, args=args, force=True)
            if is_first():
                shutil.rmtree(folder, ignore_errors=True)
                beside.rename(folder)
        except Exception as error:
            raise UserError(
                f"cannot write {folder} ({_first_line(error)}): free some space, or make it writable; the same command "
                "then goes on from the last checkpoint, if there is one"
            ) from error
    barrier("an export written")


def read_meta(folder: Path | str) -> Meta:
    """What was saved with an export, beside its parameters. Raises: UserError if it is missing or unreadable."""
    path = Path(folder).expanduser().absolute()
    if not path.is_dir():
        raise UserError(f"no checkpoint at {path}: give the folder of an export, such as runs/inpaint/teacher/export")
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        try:
            return checkpointer.restore(path, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
        except Exception as error:
            raise UserError(
                f"the checkpoint {path} is unreadable ({_first_line(error)}): is it the folder of an export, such as "
                "runs/inpaint/teacher/export?"
            ) from error


def check_params(folder: Path | str, abstract: Params) -> None:
    """Raises UserError unless `load_params` would find parameters of these shapes; reads none of them."""
    _check_shapes(read_meta(folder)["shapes"], shapes(abstract), Path(folder).expanduser().absolute())


def load_params(folder: Path | str, abstract: Params) -> tuple[Params, Meta]:
    """Parameters that export_params wrote, as (params, meta).

    Args: abstract: ShapeDtypeStructs with shardings, of the network that is to take them.
    Raises: UserError if the folder is missing, unreadable, or of another network.
    """
    path = Path(folder).expanduser().absolute()
    if not path.is_dir():
        raise UserError(f"no checkpoint at {path}: give the folder of an export, such as runs/inpaint/teacher/export")
    try:
        return _read(path, abstract)
    except Unreadable as error:
        raise UserError(f"the checkpoint {path} is unreadable ({error}): export it again") from error
