"""Whose a workdir is: of which configuration, of one run at a time, and of all processes of that."""

import contextlib
import fcntl
import json
import logging
import os
import re
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from ibmd_jax.core.errors import UserError
from ibmd_jax.train.processes import PATIENCE, barrier, highest, is_first, of_first

log = logging.getLogger(__name__)
NAME = "config.json"
# What does not change the trained parameters, beyond rounding: it may differ between the runs of one workdir.
FREE_SECTIONS = ("schedule", "evaluate")
# A run that raises on broken images has met none so far, and may go on by passing them over.
FREE_FIELDS = ("data.workers", "data.on_error", "network.remat")
ACCUMULATE = ("teacher.accumulate", "distill.accumulate")  # without dropout, whose masks are drawn for each part


def check_workdir(folder: Path, config: dict[str, Any], written: bool = True) -> None:
    """Creates the workdir, or checks that what was trained in it is of this configuration, by its config.json.

    Args: written: whether the run will write to it.
    Raises: UserError if it cannot be written, belongs to another configuration (names the fields), or is not one folder
        for all processes.
    """
    _check_local(folder)
    path, before = folder / NAME, read_config(folder)
    if any((folder / stage).exists() for stage in ("teacher", "distill")):
        if before:
            _check_same(folder, before, config)
        else:
            log.warning("%s is missing or empty: what was trained in %s is taken to be of this one", path, folder)
    if not written:
        return
    with _written(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _check_shared(folder)
        new = folder / f".config-{secrets.token_hex(4)}"  # others may come here at the same time
        new.touch()  # to see whether it can be written; a restart on a full disk needs no more
        try:
            if is_first() and config != before:
                new.write_text(json.dumps(config, indent=1))
                with open(new) as file:
                    os.fsync(file.fileno())  # a machine that dies leaves the old one, or this one
                new.replace(path)
        finally:
            new.unlink(missing_ok=True)


def _check_local(folder: Path) -> None:
    if "://" in str(folder) or re.match(r"\w\w+:/", str(folder)):  # Path makes gs:/x of gs://x
        raise UserError(
            f"--workdir={folder}: it must be a folder; mount a bucket (gcsfuse; it needs a hierarchical namespace, in "
            "which folders can be renamed) and name its mount point"
        )


@contextlib.contextmanager
def _written(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write to the workdir {folder}: {error.strerror}. Free some space, or choose another --workdir"
        ) from error


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """While it lasts, no other run trains in this workdir: each would remove the files that the other is writing.

    To be asked for before anything is written. The lock ends with the process, however that ends; a file system without
    locks is none. The run of a job that is started anew may be ending still: it is waited for. Raises: UserError.
    """
    if not is_first():
        yield
        return
    _check_local(folder)
    with _written(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".lock").touch()
    with open(folder / ".lock", "w") as file:
        end = time.monotonic() + PATIENCE
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                if time.monotonic() > end:
                    raise UserError(
                        f"another run is at work in {folder}: wait for its end, or stop it, or set another --workdir "
                        "(where there is none, a file server may hold the lock of a machine that is gone: remove .lock)"
                    ) from error
                log.info("another run is at work in %s: waiting for its end", folder)
                time.sleep(min(5, PATIENCE))
                continue
            except OSError as error:
                log.info("%s cannot be locked (%s): take care that one run alone trains in it", folder, error.strerror)
            break
        yield


def _check_shared(folder: Path) -> None:
    """Raises UserError, on all processes, unless all of them see one folder: a checkpoint is written by all."""
    if jax.process_count() == 1:
        return
    token = str(of_first(secrets.randbits(31)))
    note = folder / ".shared"
    if is_first():
        note.write_text(token)
    barrier("workdir noted")  # a name that does not depend on the folder, which may differ here
    end = time.monotonic() + PATIENCE
    while not (note.exists() and note.read_text() == token) and time.monotonic() < end:
        time.sleep(0.5)
    elsewhere = highest(not (note.exists() and note.read_text() == token))
    if is_first():
        note.unlink()
    if elsewhere:
        raise UserError(
            f"the workdir {folder.absolute()} is not one folder for all processes: set --workdir to one that is"
        )


def read_config(folder: Path) -> dict[str, Any] | None:
    """The configuration that a workdir belongs to; None where nothing was begun. Raises: UserError."""
    path = folder / NAME
    try:
        text = path.read_text() if path.exists() else ""
        found = json.loads(text) if text else None  # a machine that dies may leave an empty file
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:  # not JSON, or not text
        raise UserError(f"{path} is not valid JSON ({error}): restore it, or choose another --workdir") from error
    if found is not None and not (isinstance(found, dict) and found):
        raise UserError(f"{path} holds no configuration: restore it, or choose another --workdir")
    return found


def _check_same(folder: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    old, new = _flat(found), _flat(wanted)
    fields = FREE_FIELDS if old.get("network.dropout") else (*FREE_FIELDS, *ACCUMULATE)
    free = {k for k in old.keys() | new.keys() if k.partition(".")[0] in FREE_SECTIONS or k in fields}
    changed = sorted(k for k in (old.keys() | new.keys()) - free if old.get(k) != new.get(k))
    if changed:
        listing = "; ".join(f"{k} was {old.get(k)!r}, now {new.get(k)!r}" for k in changed[:5])
        raise UserError(
            f"the workdir {folder} belongs to another configuration ({listing}): choose another --workdir, or undo that"
        )


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {k: v for name, sub in tree.items() for k, v in _flat(sub, f"{prefix}.{name}".strip(".")).items()}
