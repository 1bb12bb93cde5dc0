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
CALL = re.compile(r" (?:call|conditional|async-start)\(.*?(?:to_apply|calls|branch_computations|true_computation)=(.*)")


def _operations(text: str) -> Iterator[tuple[str, int]]:
    """The lines of an HLO program, and how often each runs: loops from 0 to a constant, as those of lax.scan are.

    What is fused to an operation is left out; every branch of several runs once.
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

    def inside(name: str, times: int) -> Iterator[tuple[str, int]]:
        for line in bodies.get(name, []):
            yield line, times
            loop, called = WHILE.search(line), CALL.search(line)
            if loop:
                limits = re.findall(r"s32\[\]\S* constant\((\d+)\)", "\n".join(bodies.get(loop.group(1), [])))
                yield from inside(loop.group(2), times * max([1, *map(int, limits)]))
            for other in re.findall(r"%[\w.\-]+", called.group(1)) if called else ():
                yield from inside(other, times)

    return inside(main, 1)


def estimated_cycles(text: str) -> dict[str, float]:
    """Sums, by kind of operation, of the estimates that libtpu writes beside those of an HLO program, over its loops.

    A convolution or product, with what is fused to it, is a "convolution". A serial sum, which knows nothing of what
    overlaps; communication between chips has no estimate.
    (Of the compiler's cost_analysis, "optimal_seconds" comes out negative on large programs.)
    """
    total: containers.Counter[str] = containers.Counter()
    for line, times in _operations(text):
        found = CYCLES.search(line)
        if found:
            convolves = "convolution_algorithm_config" in line
            kind = "convolution" if convolves else OPERATION.search(line.partition(" = ")[2]).group(1)
            total[kind] += times * float(found.group(1))
    return dict(total)


BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4}
COLLECTIVE = re.compile(r"= (.+?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(")


def collectives(text: str) -> dict[str, tuple[int, int]]:
    """Kind -> (how many, bytes of their results) in an HLO program, over its loops."""
    found: dict[str, tuple[int, int]] = {}
    for line, times in _operations(text):
        operation = COLLECTIVE.search(line)
        if operation:
            size = sum(
                BYTES.get(dtype, 4) * math.prod(int(n) for n in dims.split(",") if n)
                for dtype, dims in re.findall(r"(\w+)\[([\d,]*)\]", operation.group(1))
            )
            count, before = found.get(operation.group(2), (0, 0))
            found[operation.group(2)] = count + times, before + times * size
    return found
