"""Whether a job fits a machine, and how long its steps take, before that machine is paid for.

python -m ibmd_jax.preflight --config=configs/inpaint.py --topology=cpu
python -m ibmd_jax.preflight --config=configs/paper.py:jpeg-5 --topology=v5e:4x4 --fit

Lowers and compiles the updates that a step is made of, each as a program of its own, for the whole mesh. TPU slices
need no TPU: libtpu compiles for them ahead of time (pip install 'ibmd_jax[preflight]', best in an environment of its
own: with libtpu, jax looks for a TPU wherever it runs). cpu and gpu mean the devices here. --fit looks for the largest
microbatch: config.STAGE.accumulate is the batch of a chip divided by it.
"""

import contextlib
import json
import logging
import math
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from absl import app, flags
from ml_collections import config_flags
from tqdm import tqdm

from ibmd_jax.core.cli import parse, refresh_seconds
from ibmd_jax.core.errors import UserError
from ibmd_jax.preflight.program import collectives, count_flops, estimated_cycles

MIB, GIB = 2**20, 2**30
# libtpu asks where it is and complains about what it hears, unless it is told; and one process locks out the others,
# which have no TPU to share.
ALONE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


class Chip(NamedTuple):
    """Peak of bfloat16 products [FLOP/s], clock [1/s], bandwidth of its memory and of its links to other chips, one way
    [B/s], and memory for a program [B]."""

    flops: float
    clock: float
    bandwidth: float
    links: float
    memory: float


# Peaks as Google publishes them. The clocks are what makes them of 4 units of 128 x 128 and of 256 x 256 products.
# Of the 16 and 32 GiB the compiler keeps 0.25 and 0.75 for itself, as its messages say.
CHIPS = {
    "v5e": Chip(197e12, 1.5e9, 819e9, 200e9, 15.75 * GIB),
    "v6e": Chip(918e12, 1.75e9, 1640e9, 400e9, 31.25 * GIB),
}


class Report(NamedTuple):
    """What one update costs a chip. flops: of products and convolutions; again: of those that remat computes again.

    bytes: all that operations read and write, as the compiler counts, what is in a loop once.
    collectives: kind -> (count, bytes of results).
    temporaries: bytes beside the arguments: activations, and parameters that were gathered.
    code: bytes of the program itself, which a TPU keeps in the same memory; the loop's has all updates'.
    peak: bytes of code, arguments, temporaries, results, and the batches that the training loop holds beside these.
    cycles: the compiler's estimate by kind of operation; empty where it gives none.
    """

    name: str
    count: int
    flops: float
    again: float
    bytes: float
    temporaries: int
    code: int
    peak: int
    cycles: dict[str, float]
    collectives: dict[str, tuple[int, int]]
    compile_seconds: float


class DoesNotFit(Exception):
    """The compiler found no way to run an update in a chip's memory."""


def find_devices(topology: str) -> tuple[list[Any], Chip | None]:
    """The devices of "v5e:4x4", "v6e:2x2", "cpu" or "gpu"; the chip where its peaks are known.

    Raises: UserError for another name, or without libtpu.
    """
    import jax
    from jax.experimental import topologies

    kind = topology.split(":")[0]
    if topology in ("cpu", "gpu"):
        try:
            return jax.devices(topology), None
        except RuntimeError as error:
            raise UserError(f"--topology={topology}: there is none here") from error
    if kind not in CHIPS or not re.fullmatch(r"\w+:\d+x\d+", topology):
        raise UserError(f"--topology={topology}: give cpu, gpu, or a slice such as v5e:4x4 ({', '.join(CHIPS)})")
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices), CHIPS[kind]
    except Exception as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"--topology={topology}: {first}. It needs libtpu (pip install 'ibmd_jax[preflight]') and a slice that "
            "exists, such as 2x2, 2x4 or 4x4"
        ) from error


def bytes_on_a_chip(tree: Any) -> int:
    """Of the shards that one device holds of ShapeDtypeStructs with shardings."""
    import jax

    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


class Job(NamedTuple):
    """All that is lowered: shapes and shardings of the state, the teacher and a batch.

    plain: the method without remat.
    parts: bytes of a chip by what they are for, batch: of all batches that the training loop holds at once, more than
        the one lowered; whole: of all of them on one chip alone, the batches left out.
    microbatch: examples of a chip that are computed at once.
    """

    method: Any
    plain: Any
    mesh: Any
    state: Any
    frozen: Any
    batch: Any
    parts: dict[str, int]
    whole: int
    microbatch: int


def make_job(config: Any, stage: str, devices: list[Any]) -> Job:
    """The job of a configuration on a mesh of devices. A given teacher that is not here has the network configured."""
    import jax
    import jax.numpy as jnp

    from ibmd_jax.build import build_model
    from ibmd_jax.build.data import AHEAD, make_corruption
    from ibmd_jax.build.methods import METHODS
    from ibmd_jax.core.types import Batch
    from ibmd_jax.networks.generator import with_new_inputs
    from ibmd_jax.train.job import teacher_folders
    from ibmd_jax.train.sharding import abstract_state, batch_sharding, check_divisible, make_mesh

    config = config.copy_and_resolve_references()
    missing = [f for f in teacher_folders(config) if not Path(f).is_dir()]
    if missing:
        print(f"{missing[0]} is not here: the teacher is taken to have config.network")
        config.teacher.update(checkpoint="", combine="mean", weights=())
    model, settings = build_model(config), config[stage]
    mesh = make_mesh(devices)
    check_divisible(f"config.{stage}.batch_size", settings.batch_size, mesh, settings.accumulate)
    method = plain = model.teacher if stage == "teacher" else model.distill
    if config.network.get("remat", "none") != "none":
        bare = config.copy_and_resolve_references()
        bare.network.remat = "none"
        plain = getattr(build_model(bare), stage)
    split = config.schedule.fsdp_min_size

    def abstract(init: Any, *args: Any) -> Any:
        return abstract_state(mesh, split, init, *args)

    def images(channels: int, dtype: Any) -> Any:
        shape = (settings.batch_size, *model.image_shape[:2], channels)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=batch_sharding(mesh))

    key = jax.random.key(0)
    x = images(model.image_shape[2], jnp.float32)
    spec = config.to_dict()["data"]["corruption"]
    corrupts = make_corruption(spec, model.image_shape)
    masked = corrupts and jax.eval_shape(corrupts, key, jnp.zeros(model.image_shape)).mask is not None
    batch = Batch(
        x,
        x if stage == "teacher" or METHODS[settings.method].needs_clean(settings) else None,
        images(1, jnp.bool_) if masked else None,
        jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=batch_sharding(mesh)),
            jax.eval_shape(lambda: model.conditioning.example(settings.batch_size)),
        ),
    )
    if stage == "teacher":
        params = abstract(lambda: model.init_params(key))
        state, frozen = abstract(method.init, params), None
        parts = {"network": params, "average": state.ema, "optimiser": state.optimizer}
    else:
        inits = model.init_teachers or (model.init_params,)
        teachers = tuple(abstract(lambda init=init: init(key)) for init in inits)
        frozen = teachers if model.init_teachers else teachers[0]
        channels = settings.get("noise_channels", 0)

        def start(teacher: Any) -> Any:
            return with_new_inputs(teacher, model.init_params(key, channels)), teacher

        state = abstract(lambda p: method.init(start(p)), teachers[0])
        found = {k: v for k, v in state._asdict().items() if any(x.ndim > 1 for x in jax.tree.leaves(v))}
        optimizers = [name for name in found if name.endswith("optimizer")]
        parts = {
            **{{"params": "student", "ema": "average"}.get(k, k): v for k, v in found.items() if k not in optimizers},
            "teacher": frozen,
            "optimiser": [found[name] for name in optimizers],
        }
    sizes = {name: bytes_on_a_chip(part) for name, part in parts.items()}
    whole = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(parts))
    # A step takes several batches; beside its own there are those that wait and the one that is being made, with x_0.
    sizes["batch"] = method.batches * (bytes_on_a_chip(batch) * (1 + AHEAD) + bytes_on_a_chip(batch._replace(x_0=x)))
    microbatch = settings.batch_size // (len(devices) * settings.accumulate)
    return Job(method, plain, mesh, state, frozen, batch, sizes, whole, microbatch)


def trace(job: Job, name: str) -> tuple[Any, float, float]:
    """One update for the mesh, traced; a chip's FLOP of its passes, and those that remat computes again."""
    import jax
    from jax.sharding import NamedSharding, PartitionSpec

    replicated = NamedSharding(job.mesh, PartitionSpec())
    key = jax.eval_shape(lambda: jax.random.key(0))
    key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=replicated)
    out = jax.tree.map(lambda x: x.sharding, job.state), replicated

    def of(method: Any) -> tuple[Any, float]:
        # What an update does not use, the teacher in the auxiliary's, is in memory all the same.
        program = jax.jit(method.updates[name].apply, donate_argnums=0, out_shardings=out, keep_unused=True)
        with jax.set_mesh(job.mesh):
            traced = program.trace(job.state, job.frozen, job.batch, key)
        return traced, count_flops(traced.jaxpr.jaxpr) / job.mesh.size

    traced, total = of(job.method)
    once = total if job.plain is job.method else of(job.plain)[1]
    return traced, once, total - once


def measure(job: Job, name: str) -> Report:
    """Compiles one update for the mesh, and reads what the compiler says of it. Raises: DoesNotFit."""
    import jax

    traced, once, again = trace(job, name)
    begin = time.perf_counter()
    with ticking(f"compiling the {name} update"):
        try:
            compiled = traced.lower().compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" in str(error):
                raise DoesNotFit(f"{name} update: {str(error).splitlines()[0][:300]}") from error
            raise
    seconds = time.perf_counter() - begin
    cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
    peak = memory.generated_code_size_in_bytes + memory.argument_size_in_bytes + memory.temp_size_in_bytes
    peak += memory.output_size_in_bytes - memory.alias_size_in_bytes
    peak += job.parts["batch"] - bytes_on_a_chip(job.batch)  # the loop's other batches
    return Report(
        name,
        job.method.updates[name].count,
        once,
        again,
        cost.get("bytes accessed", 0.0),
        memory.temp_size_in_bytes,
        memory.generated_code_size_in_bytes,
        peak,
        estimated_cycles(compiled.as_text()),
        collectives(compiled.as_text()),
        seconds,
    )


@contextlib.contextmanager
def ticking(what: str) -> Iterator[None]:
    """Shows how long `what` has taken so far."""
    stop = threading.Event()

    def tick() -> None:
        with tqdm(bar_format="{desc}: {elapsed}", desc=what, leave=False) as bar:
            while not stop.wait(refresh_seconds()):
                bar.refresh()

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def peak_of(reports: list[Report]) -> int:
    """Bytes that a chip needs for a step, whose program holds the code of all its updates."""
    return max(r.peak - r.code for r in reports) + sum(r.code for r in reports)


def describe(job: Job, reports: list[Report], chip: Chip | None, does_not_fit: str | None = None) -> str:
    """The table of one preflight. does_not_fit: of an update that has no report."""
    chips, states = job.mesh.size, sum(job.parts.values()) - job.parts["batch"]
    lines = [f"{chips} x {job.mesh.devices.flat[0].device_kind}, {job.microbatch} examples a chip at once", ""]
    lines += [f"{name:32} {size / MIB:10.1f} MiB a chip" for name, size in job.parts.items()]
    peak = peak_of(reports)
    for what, size in (
        ("activations, gathered parameters", max(r.temporaries for r in reports)),
        ("the program itself", sum(r.code for r in reports)),
        ("peak", peak),
    ):
        lines += [f"{what:32} {size / MIB:10.1f}"]
    if chip:
        lines[-1] += (
            f" of {chip.memory / MIB:.1f}: {'fits' if peak <= chip.memory and not does_not_fit else 'DOES NOT FIT'}"
        )
    lines += [f"what stays is {states / (job.whole / chips):.2f} times an even share of it all"]
    total = floor = roofline = sending = 0.0
    for r in reports:
        lines += ["", f"{r.name} update, {r.count} in a step (compiled in {r.compile_seconds:.0f} s)"]
        again = f" (and {r.again / 1e9:.1f} again, for remat)" if r.again else ""
        lines += [f"  {r.flops / 1e9:.1f} GFLOP{again} and {r.bytes / 1e9:.2f} GB a chip"]
        lines += [f"  {n} {kind}, {size / 1e6:.1f} MB" for kind, (n, size) in sorted(r.collectives.items())]
        if chip:
            least, moving = r.flops / chip.flops, r.bytes / chip.bandwidth
            estimate = sum(r.cycles.values()) / chip.clock
            total, floor = total + r.count * estimate, floor + r.count * least
            roofline += r.count * max(least, moving)
            sent = sum(size for _, size in r.collectives.values()) / chip.links
            sending += r.count * sent
            lines += [
                f"  at least {least * 1e3:.1f} ms for its arithmetic at peak, {moving * 1e3:.1f} ms for these bytes,",
                "  those in a loop counted once;",
                f"  {sent * 1e3:.1f} ms for what the chips send to each other, if none of it overlaps;",
                f"  compiler's estimate {estimate * 1e3:.1f} ms, without that, of it",
            ]
            most = sorted(r.cycles.items(), key=lambda item: -item[1])[:5]
            lines += [f"    {cycles / chip.clock * 1e3:10.1f} ms {kind}" for kind, cycles in most]
    if does_not_fit:
        lines += ["", f"DOES NOT FIT: {does_not_fit}"]
    elif chip:
        lines += [
            "",
            f"a step: {total:.2f} s by the compiler's estimate, {total / floor:.2f} times the floor of its arithmetic, "
            f"at most {total / roofline:.2f} times that of arithmetic or memory, whichever is higher; "
            f"{sending:.2f} s more for what the chips send to each other, if nothing of it overlaps",
        ]
    return "\n".join(lines)


class Found(NamedTuple):
    """Of one preflight: its job, reports of the updates that compiled, and why the next one did not, if so."""

    job: Job
    reports: list[Report]
    does_not_fit: str | None = None


def preflight(config: Any, stage: str, devices: list[Any], chip: Chip | None) -> Found:
    """Compiles the updates of a stage, up to one that does not fit; prints a line for each. Raises: UserError."""
    job, reports = make_job(config, stage, devices), []
    for name in job.method.updates:
        try:
            r = measure(job, name)
        except DoesNotFit as error:
            print(f"does not fit: {error}", file=sys.stderr)
            return Found(job, reports, str(error))
        estimate = f", estimated {sum(r.cycles.values()) / chip.clock:.2f} s" if chip else ""
        print(f"{name} update: {r.peak / GIB:.2f} GiB{estimate}, compiled in {r.compile_seconds:.0f} s", flush=True)
        reports.append(r)
    return Found(job, reports)


def largest(config: Any, stage: str, devices: list[Any], chip: Chip) -> Found:
    """The preflight of the largest microbatch that fits; config.STAGE.accumulate is set to it.

    What 1 and 2 examples take tells how many might fit; that is compiled, and fewer if it does not.
    Raises: UserError if one example does not fit.
    """
    share = max(config[stage].batch_size // len(devices), 1)  # 0 is refused by name in make_job
    sizes = [m for m in range(1, share + 1) if share % m == 0]

    def at(microbatch: int) -> Found | None:
        config[stage].accumulate = share // microbatch
        found = preflight(config, stage, devices, chip)
        if found.does_not_fit:
            print(f"{microbatch} examples a chip do not fit", flush=True)
            return None
        peak = peak_of(found.reports)
        print(f"{microbatch} examples a chip: {peak / GIB:.2f} of {chip.memory / GIB:.2f} GiB", flush=True)
        return found if peak <= chip.memory else None

    tried = {m: at(m) for m in sizes[:2]}
    if tried[1] is None:
        raise UserError("one example a chip does not fit: take more chips, config.network.remat, or bfloat16")
    if all(tried.values()) and len(sizes) > 1:
        one, two = (peak_of(found.reports) for found in tried.values())
        slope = max((two - one) / (sizes[1] - 1), 1)
        for m in reversed(sizes[2:]):
            if one + slope * (m - 1) <= 1.05 * chip.memory:
                tried[m] = at(m)
                if tried[m]:
                    break
    best = max(m for m, found in tried.items() if found)
    config[stage].accumulate = share // best
    return tried[best]


def main(argv: list[str]) -> int:
    """Prints the table; returns 0 if it fits, 1 if not, 2 for bad input."""
    for noisy in ("absl", "jax"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    given = flags.FLAGS
    if given.topology != "gpu":  # compiling for a TPU that is not here needs no other backend
        os.environ["JAX_PLATFORMS"] = "cpu"
        for name, value in ALONE.items():
            os.environ.setdefault(name, value)
    try:
        if given.json and (Path(given.json).is_dir() or not Path(given.json).parent.is_dir()):
            raise UserError(f"--json={given.json}: name a file in a folder that exists")
        devices, chip = find_devices(given.topology)
        if given.fit and not chip:
            raise UserError(f"--fit needs a chip of known memory ({', '.join(CHIPS)}), not {given.topology}")
        config = given.config
        with config.unlocked():
            job, reports, does_not_fit = (largest if given.fit else preflight)(config, given.stage, devices, chip)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if reports:
        print(describe(job, reports, chip, does_not_fit))
    if given.fit:
        print(f"\nthe largest microbatch that fits: --config.{given.stage}.accumulate={config[given.stage].accumulate}")
    if given.json:
        found = {
            "config": config.name,
            "topology": given.topology,
            "stage": given.stage,
            "accumulate": config[given.stage].accumulate,
            "batch_size": config[given.stage].batch_size,
            "microbatch_a_chip": job.microbatch,
            "bytes_a_chip": job.parts,
            "bytes_of_states": job.whole,
            "memory_of_a_chip": chip and chip.memory,
            "updates": [r._asdict() for r in reports],
            "does_not_fit": does_not_fit,
        }
        try:
            Path(given.json).write_text(json.dumps(found, indent=1) + "\n")
        except OSError as error:
            print(f"error: cannot write {given.json}: {error.strerror}", file=sys.stderr)
            return 2
    return int(bool(does_not_fit) or (chip is not None and peak_of(reports) > chip.memory))


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "Configuration file.", lock_config=True)
    flags.DEFINE_string("topology", "cpu", "v5e:4x4, v6e:2x2 and the like; cpu or gpu: the devices here.")
    flags.DEFINE_enum("stage", "distill", ["distill", "teacher"], "What is to be trained.")
    flags.DEFINE_bool("fit", False, "Look for the largest microbatch that fits; compiles two or more times.")
    flags.DEFINE_string("json", "", "File for the results.")
    flags.mark_flag_as_required("config")
    app.run(main, flags_parser=parse)
