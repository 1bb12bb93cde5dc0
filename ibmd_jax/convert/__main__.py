"""Converts checkpoints: a PyTorch file into a teacher, or one of our exports into a PyTorch state_dict.

python -m ibmd_jax.convert results/sr4x/latest.pt --to teachers/sr4x-bicubic    I2SB, options.pkl beside it
python -m ibmd_jax.convert e2h_ema_0.9999_420000.pt --to teachers/e2h           DDBM, DBIM, ADM, .safetensors
python -m ibmd_jax.convert runs/sr4x/distill/export --to student.safetensors    back to PyTorch

PyTorch is not needed, and nothing in the file is executed. The teacher is used by config.teacher.checkpoint = its
folder, which brings network, bridge and parametrisation with it.
"""

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from ibmd_jax.build.model import make_bridge, make_network, make_parametrisation
from ibmd_jax.convert.names import convert, to_torch
from ibmd_jax.convert.published import PROCESSES, recognise
from ibmd_jax.core.errors import UserError, named
from ibmd_jax.networks.adm import ADM
from ibmd_jax.train.checkpoint import export_params, load_params, read_meta


def shapes_of(network: dict[str, Any], channels: int) -> dict[str, tuple[int, ...]]:
    """Name -> shape of an ADM's parameters for `channels` input channels, without making them."""
    settings = {k: v for k, v in network.items() if k not in ("name", "conditional")}
    side = 2 ** (len(settings["multipliers"]) - 1)
    x, t = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((1, side, side, channels), (1,)))
    labels = jax.ShapeDtypeStruct((1,), jnp.int32) if settings["classes"] else None
    settings = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
    tree = jax.eval_shape(ADM(**settings).init, jax.random.key(0), x, t, labels)["params"]
    return {name: leaf.shape for name, leaf in flatten_dict(tree, sep="/").items()}


def to_teacher(file: Path, folder: Path, process: dict[str, str], **known: Any) -> None:
    """A PyTorch checkpoint into a teacher's folder, and one beside it for the weights that an average was made of.

    Args: process: bridge and parametrisation, if not what the checkpoint suggests. known: arguments of `recognise`.
    Raises: UserError, with nothing written unless a disk is full.
    """
    beside = folder.parent / f"{folder.name}-raw"  # with_name would not take ".", which exists
    for place in (folder, beside):
        if place.exists():
            raise UserError(f"{place} exists: choose another folder, or remove it")
    chosen = {section: _section(section, text) for section, text in process.items() if text}
    found = recognise(file, **known)
    model = {**found.model, **chosen}
    network = model["network"]
    expected = shapes_of(network, found.state["input_blocks.0.0.weight"].shape[1])
    params = convert(found.state, expected)
    order = "legacy, [head][q, k, v]" if network["legacy_attention"] else "new, [q, k, v][head]"
    print(f"source           {found.source}: {', '.join([file.name, *found.notes])}")
    for section in ("network", "bridge", "parametrisation"):
        assumed = section != "network" and section not in chosen and found.source not in ("i2sb", "ibmd_jax")
        print(
            f"{section:16} {' '.join(f'{k}={v}' for k, v in model[section].items())}"
            + f" (not in the file: --{section})" * assumed
        )
    print(
        f"attention order  {order}; "
        + (f"heads of {network['head_channels']} channels" if network["head_channels"] else f"{network['heads']} heads")
        + (" (not in the file: --attention, --head_channels)" if found.source != "ibmd_jax" else "")
    )
    print(f"parameters       {sum(map(math.prod, expected.values())):,}")
    meta = {"stage": "teacher", "step": 0, "model": model}
    export_params(folder, unflatten_dict(params, sep="/"), meta)
    use = "start" if found.source == "adm" else "checkpoint"
    print(f"wrote            {folder}: use it by config.teacher.{use}")
    del params  # one network at a time
    if found.raw is not None:
        export_params(beside, unflatten_dict(convert(found.raw, expected), sep="/"), meta)
        print(f"wrote            {beside}: without averaging; the authors' auxiliary_start, in config.distill")


def _section(section: str, text: str) -> dict[str, Any]:
    """A bridge or parametrisation as --config has it. Raises: UserError for an unknown one, or a wrong setting."""
    name, settings = named(text, f"--{section}")
    settings = {"name": name, **settings}
    {"bridge": make_bridge, "parametrisation": make_parametrisation}[section](settings)
    return settings


def to_pytorch(source: Path, file: Path) -> None:
    """An export of ours into a .safetensors file, whose folder is made. Raises: UserError, with nothing written."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    leaves = {name: np.empty(shape, np.float32) for name, shape in read_meta(source)["shapes"].items()}
    params, meta = load_params(source, unflatten_dict(leaves, sep="/"))
    state = to_torch({name: np.asarray(v) for name, v in flatten_dict(params, sep="/").items()})
    model = dict(meta.get("model", {}))
    if "network" in model:  # all of it, since the file has no preset's name, and its defaults may change
        module, conditional = make_network(model["network"])
        fields = {name: getattr(module, name) for name in ADM.__dataclass_fields__ if name not in ("parent", "name")}
        model["network"] = {"name": "adm", **fields, "conditional": conditional}
    temporary = file.with_suffix(".tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file(state, temporary, {"ibmd_jax": json.dumps(model)})
        temporary.replace(file)
    except (OSError, SafetensorError) as error:
        if temporary.is_file():
            temporary.unlink()
        raise UserError(f"cannot write {file}: {getattr(error, 'strerror', None) or error}") from error
    print(f"wrote {file}: {len(state)} tensors, {sum(v.size for v in state.values()):,} parameters")
    if "student" in model:
        print("of a student, which is called as its metadata say: " + json.dumps(model["student"]))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("ibmd_jax.convert", None, __doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("file", type=Path, help="a PyTorch checkpoint, or the folder of an export")
    parser.add_argument("--to", type=Path, required=True, help="a new folder, or a new file that ends in .safetensors")
    parser.add_argument("--source", choices=sorted(PROCESSES), default="", help="who wrote a bare state_dict")
    parser.add_argument("--head_channels", type=int, help="width of the attention heads, if not the usual")
    parser.add_argument(
        "--attention", choices=["legacy", "new"], default="", help="channel order of qkv, if not the usual"
    )
    parser.add_argument(
        "--x_T", action="store_true", help="add input channels for x_T to an ADM that a DDBM or DBIM is to start from"
    )
    for section, example in (("bridge", "'name': 'ddbm_ve', 'sigma_max': 20"), ("parametrisation", "'name': 'eps'")):
        parser.add_argument(f"--{section}", default="", help=f'of the training, if not the usual: "{{{example}}}"')
    args = parser.parse_args(argv)
    known = {name: getattr(args, name) for name in ("source", "head_channels", "attention", "x_T")}
    process = {section: getattr(args, section) for section in ("bridge", "parametrisation")}
    try:
        if args.to.suffix == ".safetensors":
            for name, value in {**known, **process}.items():
                if value:
                    raise UserError(f"--{name} is for checkpoints that become teachers, not for --to {args.to}")
            to_pytorch(args.file, args.to)
        else:
            to_teacher(args.file, args.to, process, **known)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
