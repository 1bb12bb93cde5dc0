"""What a program costs, read from its jaxpr and from the text of its compiled form (HLO)."""

import collections as containers
import math
import re
from collections.abc import Iterator
from typing import Any


def count_flops(jaxpr: Any) -> float:
    """FLOP of all matrix products and convolutions of a jaxpr, loops as often as they run.

    A loop whose end is drawn, as of a student's roll-out, counts once here and below.
    """
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            contracted = equation.params["dimension_numbers"][0][0]
            shape = equation.invars[0].aval.shape
            total += 2 * equation.outvars[0].aval.size * math.prod(shape[i] for i in contracted)
        elif equation.primitive.name == "conv_general_dilated":
            kernel = equation.invars[1].aval
            features = kernel.shape[equation.params["dimension_numbers"].rhs_spec[0]]
            total += 2 * equation.outvars[0].aval.size * kernel.size / features
        else:
            inner = [count_flops(j) for j in _inner(equation.params)]
            if inner:
                branches = equation.primitive.name == "cond"
                total += equation.params.get("length", 1) * (max(inner) if branches else sum(inner))
    return total


def _inner(params: dict[str, Any]) -> Iterator[Any]:
    """The jaxprs among an equation's parameters."""
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            jaxpr = getattr(item, "jaxpr", item)
            if hasattr(jaxpr, "eqns"):
                yield jaxpr


OPERATION = re.compile(r"(?:^| )([a-z][a-z0-9\-]*)\(")
CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
WHILE = re.compile(r" while\(.*condition=(%[\w.\-]+), body=(%[\w.\-]+)")


def estimated_cycles(text: str) -> dict[str, float]:
    """Sums, by kind of operation, of the estimates that libtpu writes beside those of an HLO program.

    A convolution or product, with what is fused to it, is a "convolution". A serial sum: it knows nothing of what
    overlaps. Loops count as often as they run, from 0 to a constant, as those of lax.scan do.
    (Of the compiler's cost_analysis, "optimal_seconds" comes out negative on large programs.)
    """
    bodies: dict[str, list[str]] = {}
    name = main = ""
    for line in text.splitlines():
        if line.endswith("{") and "(" in line and not line.startswith(" "):
            name = line.removeprefix("ENTRY ").split()[0]
            bodies[name] = []
            main = name if line.startswith("ENTRY") else main
        elif name:
            bodies[name].append(line)

    total: containers.Counter[str] = containers.Counter()

    def add(name: str, times: int) -> None:
        for line in bodies.get(name, []):
            found, loop = CYCLES.search(line), WHILE.search(line)
            if found:
                convolves = "convolution_algorithm_config" in line
                kind = "convolution" if convolves else OPERATION.search(line.partition(" = ")[2]).group(1)
                total[kind] += times * float(found.group(1))
            if loop:
                limits = re.findall(r"s32\[\]\S* constant\((\d+)\)", "\n".join(bodies.get(loop.group(1), [])))
                add(loop.group(2), times * max([1, *map(int, limits)]))

    add(main, 1)
    return dict(total)


BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4}
COLLECTIVE = re.compile(r"= (.+?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(")


def collectives(text: str) -> dict[str, tuple[int, int]]:
    """Kind -> (how many, bytes of their results) in an HLO program; what is in a loop counts once."""
    found: dict[str, tuple[int, int]] = {}
    for shapes, kind in COLLECTIVE.findall(text):
        size = sum(
            BYTES.get(dtype, 4) * math.prod(int(n) for n in dims.split(",") if n)
            for dtype, dims in re.findall(r"(\w+)\[([\d,]*)\]", shapes)
        )
        count, before = found.get(kind, (0, 0))
        found[kind] = count + 1, before + size
    return found
