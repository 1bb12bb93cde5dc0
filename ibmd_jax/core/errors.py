"""The error that a user can mend; and table look-up, which raises it."""

import difflib
from collections.abc import Mapping
from typing import TypeVar

V = TypeVar("V")


class UserError(Exception):
    """Bad input. Its message names the thing and the fix; `main` prints it without a traceback and exits with 2."""


def lookup(table: Mapping[str, V], name: str, kind: str) -> V:
    """table[name]; an unknown name raises UserError with the names that exist and the nearest one."""
    if name in table:
        return table[name]
    near = difflib.get_close_matches(str(name), table, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise UserError(f"unknown {kind} {name!r}: choose one of {', '.join(sorted(table))}.{hint}")
