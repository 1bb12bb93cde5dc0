"""Recognises the checkpoints of I2SB, DDBM, DBIM and ADM, and says which network, bridge and parametrisation they hold.

All four are ADM UNets; their settings are read off the parameters' names and shapes. Three things are not in the
parameters: the width of the attention heads (64 in all of them but one), the channel order of qkv, and the process.
They follow from who wrote the file:

    found                                               source   attention  bridge                parametrisation
    "net" and "ema", options.pkl beside it              I2SB     legacy     i2sb_table            eps, x_T where cond_x1
    six input channels, 1x1 weights of four axes        DDBM     new        ddbm_vp               ddbm, x_T
    six input channels, labels                          DBIM     legacy     i2sb_table of DBIM    eps, x_T
    six input channels, 1x1 weights of three axes       DBIM's copies of DDBM's: new, ddbm_vp, ddbm, x_T
    three input channels, or six outputs                ADM      legacy     diffusion_linear      eps
    the same, ADM's network for 64 pixels               ADM      new        diffusion_cosine      eps
    the same, for 128 pixels                            ADM      legacy, four heads at each level, diffusion_linear, eps

ADM's is no teacher by itself, but what I2SB and DBIM started theirs from: config.teacher.start takes it.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ibmd_jax.convert.torch_file import load_pickle, load_torch
from ibmd_jax.core.errors import UserError, lookup

State = Mapping[str, np.ndarray]


class Checkpoint(NamedTuple):
    """state: parameters under their PyTorch names. model: the sections of a configuration that they need. raw: the same
    parameters without averaging, where `state` has their average."""

    source: str
    state: State
    model: dict[str, Any]
    notes: list[str]
    raw: State | None = None


def network_settings(state: State, head_channels: int) -> dict[str, Any]:
    """The fields of networks.adm.ADM that a state_dict shows.

    Raises: UserError for another architecture, or heads that do not divide it.
    """
    try:
        channels = state["time_embed.0.weight"].shape[1]
        blocks = {int(m[1]) for name in state if (m := re.match(r"input_blocks\.(\d+)\.", name))}
        ups = [
            int(m[1])
            for name in state
            if (m := re.fullmatch(r"output_blocks\.(\d+)\.[12]\.(?:in_layers\.0|conv)\.weight", name))
        ]
        per_level = min(ups) if ups else len(blocks) - 1
        firsts = [1 + level * (per_level + 1) for level in range(len(ups) + 1)]
        widths = [state[f"input_blocks.{i}.0.out_layers.3.weight"].shape[0] for i in firsts]
        emb = state[f"input_blocks.{firsts[0]}.0.emb_layers.1.weight"].shape[0]
        labels = state.get("label_emb.weight")
        attention = [k for k, i in enumerate(firsts) if f"input_blocks.{i}.1.qkv.weight" in state]
        _check_heads(head_channels, [widths[k] for k in attention] + widths[-1:])  # the middle block always has some
        return {
            "name": "adm",
            "out_channels": state["out.2.weight"].shape[0],
            "channels": channels,
            "multipliers": [w / channels if w % channels else w // channels for w in widths],
            "blocks": per_level,
            "attention": [2**k for k in attention],
            "head_channels": head_channels,
            "resblock_updown": not any(name.endswith(".op.weight") for name in state),
            "scale_shift": emb == 2 * widths[0],
            "classes": 0 if labels is None else labels.shape[0],
        }
    except (KeyError, IndexError) as error:
        raise UserError(f"this is not an ADM UNet: it lacks {error}") from error


def _check_heads(head_channels: int, widths: list[int]) -> None:
    for width in widths:
        if head_channels < 1 or width % head_channels:
            raise UserError(f"--head_channels={head_channels}: attention on {width} channels has no such heads")


def _tensors(found: Any, path: Path) -> State:
    if not isinstance(found, dict) or not found or not all(isinstance(v, np.ndarray) for v in found.values()):
        raise UserError(f"{path} holds no parameters: expected a state_dict, or I2SB's dict with net and ema")
    return found


def _plain(name: str) -> str:
    return name.removeprefix("module.").removeprefix("diffusion_model.")


def _i2sb(found: dict[str, Any], path: Path, head_channels: int) -> Checkpoint:
    net, ema = _tensors(found["net"], path), found.get("ema") or {}
    shadow = ema.get("shadow_params")
    raw = {_plain(name): value for name, value in net.items()}
    names, state, notes = list(raw), raw, ["it has no EMA: took the raw weights"]
    if shadow is not None:
        if len(shadow) != len(names):
            raise UserError(f"{path}: its EMA has {len(shadow)} tensors, its network {len(names)}")
        for (name, value), mean in zip(raw.items(), shadow, strict=True):
            if value.shape != mean.shape:
                raise UserError(f"{path}: {name} is {mean.shape} in the EMA, {value.shape} in the network")
        state = dict(zip(names, shadow, strict=True))
        notes = [f"EMA of decay {ema.get('decay')} after {ema.get('num_updates')} updates"]
    options_file = path.with_name("options.pkl")
    if not options_file.exists():
        raise UserError(f"there is no {options_file}: I2SB writes it beside latest.pt, and the process is in it")
    options = load_pickle(options_file)  # may hold access keys: never printed as a whole
    try:
        options = options if isinstance(options, dict) else vars(options)
        bridge = {"name": "i2sb_table", "beta_max": float(options["beta_max"]), "steps": int(options["interval"])}
        conditional, ot_ode = bool(options["cond_x1"]), bool(options["ot_ode"])
        times = float(options.get("t0", 1e-4)), float(options.get("T", 1.0))
    except KeyError as error:
        raise UserError(f"{options_file} lacks the option {error}") from error
    except (TypeError, ValueError) as error:
        raise UserError(f"{options_file} does not hold the options of I2SB ({error})") from error
    if times != (1e-4, 1.0):
        raise UserError(f"{options_file}: t0, T = {times}: what the network is told of t would differ from (1e-4, 1)")
    if options.get("add_x1_noise"):
        if conditional:
            raise UserError(f"{options_file}: with add_x1_noise and cond_x1 it sees x_T without noise: no teacher does")
        notes.append("its x_T had noise of deviation 1 added (add_x1_noise): so must that of your data")
    if _conditional(state, path) != conditional:
        raise UserError(
            f"{options_file}: cond_x1 = {conditional}, but its network has {_channels(state)[0]} input channels"
        )
    model = {
        "network": {**network_settings(state, head_channels), "legacy_attention": True, "conditional": conditional},
        "bridge": {**bridge, "ot_ode": ot_ode},
        "parametrisation": {"name": "eps"},
    }
    return Checkpoint("i2sb", state, model, notes, None if shadow is None else raw)


def _with_x_T(state: State) -> State:
    """Input channels for x_T beside those for x_t, as copies of them: how DBIM's training starts from ADM."""
    first = state["input_blocks.0.0.weight"]
    return {**state, "input_blocks.0.0.weight": np.concatenate([first, first], axis=1)}


def _channels(state: State) -> tuple[int, int]:
    """Of input and output."""
    return state["input_blocks.0.0.weight"].shape[1], state["out.2.weight"].shape[0]


def _conditional(state: State, path: Path) -> bool:
    """Whether it sees x_T beside x_t. Raises: UserError for other inputs, such as a student's noise."""
    inputs, outputs = _channels(state)
    if inputs not in (outputs, 2 * outputs):
        raise UserError(
            f"{path}: a teacher of {outputs} output channels has {outputs} input channels, or {2 * outputs} with x_T, "
            f"not {inputs}: is this a student with noise input?"
        )
    return inputs != outputs


def _kind(state: State, path: Path) -> str:
    """Who wrote a bare state_dict, by its shapes."""
    if not _conditional(state, path):
        return "adm"
    return "dbim" if "label_emb.weight" in state else "ddbm"


PROCESSES: dict[str, dict[str, Any]] = {
    "ddbm": {"bridge": {"name": "ddbm_vp", "beta_d": 2.0, "beta_min": 0.1}, "parametrisation": {"name": "ddbm"}},
    "dbim": {
        "bridge": {"name": "i2sb_table", "beta_max": 1.0, "steps": 1000, "dbim": True},
        "parametrisation": {"name": "eps"},
    },
    "adm": {"bridge": {"name": "diffusion_linear"}, "parametrisation": {"name": "eps"}},
}


# What ADM's authors trained with other settings than the rest, for 64 and 128 pixels: by width, multipliers and blocks.
OTHERS: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = {
    (192, (1, 2, 3, 4), 3): {"network": {"legacy_attention": False}, "bridge": {"name": "diffusion_cosine"}},
    (256, (1, 1, 2, 3, 4), 2): {"network": {"head_channels": 0, "heads": 4}},
}


def recognise(
    path: str | Path, source: str = "", head_channels: int | None = None, attention: str = "", x_T: bool = False
) -> Checkpoint:
    """Reads a checkpoint file, or I2SB's folder with latest.pt.

    Args:
        source: ddbm, dbim or adm, to overrule what the shapes of a bare state_dict suggest.
        head_channels: width of the attention heads, if not the usual.
        attention: "legacy" or "new", the channel order of qkv, to overrule what its source suggests.
        x_T: whether to give a network of three input channels three more, for x_T.
    Raises: UserError, also for an argument that the checkpoint leaves no use for.
    """
    path, ours, given = Path(path), {}, {"source": source, "x_T": x_T}
    path = path / "latest.pt" if path.is_dir() else path
    if path.suffix == ".safetensors":
        from safetensors import safe_open  # its reader maps the file, too

        try:
            with safe_open(path, framework="numpy") as file:
                ours = json.loads((file.metadata() or {}).get("ibmd_jax", "{}"))
                found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no dict
        except Exception as error:
            raise UserError(f"cannot read {path}: {error}") from error
    else:
        found = load_torch(path)
    if isinstance(found, dict) and "net" not in found and any(k.startswith("diffusion_model.") for k in found):
        found = {"net": found}  # I2SB's network without the rest of latest.pt
    if isinstance(found, dict) and "net" in found:
        _check_unused(path, "is I2SB's", given)
        return _with_attention(_i2sb(found, path, 64 if head_channels is None else head_channels), attention)
    state = {_plain(name): value for name, value in _tensors(found, path).items()}
    for name in ("input_blocks.0.0.weight", "out.2.weight"):
        if name not in state:
            raise UserError(f"{path} is not an ADM UNet: it lacks the parameter {name}")
    if ours:
        if _conditional(state, path) != ours["network"]["conditional"]:
            raise UserError(f"{path} is a student with noise input, and no teacher has one: use its export")
        _check_unused(path, "says all about itself", given | {"head_channels": head_channels, "attention": attention})
        return Checkpoint("ibmd_jax", state, ours, [f"a student: {ours['student']}"] if "student" in ours else [])
    notes = []
    if state["out.2.weight"].shape[0] == 6:
        if _channels(state)[0] != 3 and not source:
            raise UserError(
                f"{path} has six outputs, as ADM's networks, and {_channels(state)[0]} input channels, as those "
                "of them that enlarge images, which are no teachers of bridges. If this is one, say --source"
            )
        source = source or "adm"
        state = {k: v[:3] if k.startswith("out.2.") else v for k, v in state.items()}
        notes.append("kept the first three of six outputs (the others are ADM's variances)")
    source = source or _kind(state, path)
    process = lookup(PROCESSES, source, "source")
    if x_T and _conditional(state, path):
        _check_unused(path, "has input channels for x_T", {"x_T": x_T})
    if x_T:
        state = _with_x_T(state)
        notes.append("added input channels for x_T, copies of those for x_t")
    network = {
        **network_settings(state, 64 if head_channels is None else head_channels),
        "legacy_attention": source != "ddbm",
        "conditional": _conditional(state, path),
    }
    if source == "adm":
        other = OTHERS.get((network["channels"], tuple(network["multipliers"]), network["blocks"]), {})
        heads = ("head_channels", "heads") if head_channels is not None else ()
        network |= {name: value for name, value in other.get("network", {}).items() if name not in heads}
        if "bridge" in other:
            process = {**process, "bridge": other["bridge"]}
    return _with_attention(Checkpoint(source, state, {"network": network, **process}, notes), attention)


def _with_attention(found: Checkpoint, attention: str) -> Checkpoint:
    network = found.model["network"]
    if attention:
        network = {**network, "legacy_attention": attention == "legacy"}
    return found._replace(model={**found.model, "network": network})


def _check_unused(path: Path, what: str, given: dict[str, Any]) -> None:
    """Raises UserError if one of these arguments was given."""
    for name, value in given.items():
        if value:
            raise UserError(f"{path} {what}, so that --{name} would do nothing: leave it out")
