"""Which configuration a workdir belongs to."""

import json
from pathlib import Path
from typing import Any

import jax

from ibmd_jax.core.errors import UserError
from ibmd_jax.train.processes import is_first

# Sections that do not change the trained parameters: they may differ between the runs of one workdir.
FREE_SECTIONS = ("schedule", "evaluate")


def check_workdir(folder: Path, config: dict[str, Any]) -> None:
    """Creates the workdir, or checks that it belongs to this configuration, which is kept in its config.json.

    Raises: UserError if it cannot be written, or if it was made by another configuration (names the fields).
    """
    wanted = {k: v for k, v in config.items() if k not in FREE_SECTIONS}
    path = folder / "config.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if path.exists():
            found = {k: v for k, v in json.loads(path.read_text()).items() if k not in FREE_SECTIONS}
        else:
            found = wanted
        probe = folder / f".writable{jax.process_index()}"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise UserError(f"cannot write to the workdir {folder}: {error.strerror}. Choose another --workdir") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not valid JSON ({error}): restore it, or choose another --workdir") from error
    old, new = _flat(found), _flat(wanted)
    changed = sorted(k for k in old.keys() | new.keys() if old.get(k) != new.get(k))
    if changed:
        listing = "; ".join(f"{k} was {old.get(k)!r}, now {new.get(k)!r}" for k in changed[:5])
        raise UserError(
            f"the workdir {folder} belongs to another configuration ({listing}): choose another --workdir, or undo that"
        )
    if is_first():
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(config, indent=1))
        temporary.replace(path)


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {k: v for name, sub in tree.items() for k, v in _flat(sub, f"{prefix}.{name}".strip(".")).items()}
