"""The error that a user can mend; and what raises it: table look-up, and names with settings."""

import ast
import difflib
from collections.abc import Mapping
from typing import Any, TypeVar

V = TypeVar("V")


class UserError(Exception):
    """Bad input. Its message names the thing and the fix; `main` prints it without a traceback and exits with 2."""


def lookup(table: Mapping[str, V], name: str, kind: str) -> V:
    """table[name]; an unknown name raises UserError with the names that exist and the nearest one."""
    if isinstance(name, str) and name in table:
        return table[name]
    near = difflib.get_close_matches(str(name), table, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise UserError(f"unknown {kind} {name!r}: choose one of {', '.join(sorted(table))}.{hint}")


def named(spec: str | Mapping[str, Any], kind: str) -> tuple[str, dict[str, Any]]:
    """Name and settings of "NAME" or {"name": "NAME", a setting: ...}, which may itself be a string, as of a flag.

    Raises: UserError for anything else.
    """
    found: Any = {"name": spec}
    if isinstance(spec, str) and spec.lstrip().startswith("{"):
        try:
            found = ast.literal_eval(spec.strip())
        except (SyntaxError, ValueError):
            found = None
    elif isinstance(spec, Mapping):
        found = spec
    if not isinstance(found, Mapping) or not isinstance(found.get("name"), str):
        raise UserError(f"{kind} {spec!r}: give a name, or {{'name': ..., a setting: ...}}")
    return found["name"], {name: value for name, value in found.items() if name != "name"}
