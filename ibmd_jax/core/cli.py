"""The command line of every program with a --config: what is wrong with it is one line, not a traceback.

Progress is a bar that moves on a terminal, and a line now and then in a log file.
"""

import sys

from absl import flags


def parse(argv: list[str]) -> list[str]:
    """Parses the flags of absl's app.run, --config among them.

    A wrong flag, configuration file, field or value, and an argument that is no flag, end the program with status 2.
    """
    for given in argv:
        if given.startswith("--config=") and given.endswith(".json"):
            print(f"error: {given} is what a run wrote: give --workdir=its folder, without --config", file=sys.stderr)
            sys.exit(2)
    try:
        rest = flags.FLAGS(argv)
        _ = flags.FLAGS.config and flags.FLAGS.config.name  # a file that could not be loaded answers here
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        text = str(error)
        if isinstance(error, AttributeError | KeyError):  # ml_collections quotes its message once more
            text = "unknown field " + text.strip("\"'").replace("\\n", " ").replace("\\'", "'")
        lines = text.split("Traceback")[-1].splitlines() if "Traceback" in text else [text]
        message = " ".join(next(line for line in reversed(lines) if line.strip()).split())
        print(f"error: {message.rstrip('.')}. See --help.", file=sys.stderr)
        sys.exit(2)
    if len(rest) > 1:
        print(f"error: unexpected argument {rest[1]!r}; write --flag=value, see --help", file=sys.stderr)
        sys.exit(2)
    return rest


def refresh_seconds() -> float:
    """How often progress is shown: each second on a terminal, each half minute in a file."""
    return 1 if sys.stderr.isatty() else 30
