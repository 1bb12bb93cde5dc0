"""The runs of the IBMD paper (arXiv 2502.01362, table 7), a row each: its teacher, its data, its hyper-parameters.

python -m ibmd_jax.convert latest.pt --to teachers/jpeg-5              once: the published teacher, and jpeg-5-raw
python -m ibmd_jax.main --config=configs/paper.py:jpeg-5 --config.data.source=folder:/data/imagenet --mode=distill
python -m ibmd_jax.main --config=configs/paper.py:jpeg-5-quicktest     a minute or two on 2 CPU cores: all of it, tiny

A row takes its teacher from teachers/ROW, and I2SB's rows start the auxiliary network at teachers/ROW-raw. e2h-1 and
e2h-2 have one teacher, and so have the diode rows: set --config.teacher.checkpoint. All 256 examples are computed at
once: on few devices set --config.distill.accumulate. Rows with multistep = "marginal" share n within a
step, unlike the authors' code: see methods/ibmd.py.

| row            | teacher             | NFE | FID published (NFE)      | time on 8 A100 |
|---|---|---|---|---|
| sr4x-bicubic   | I2SB                | 1   | 2.6 (I2SB at 1000: 2.8)  | 40 h |
| sr4x-pool      | I2SB                | 1   | 2.5 (I2SB at 1000: 2.7)  | 40 h |
| jpeg-5         | I2SB                | 1   | 5.2 (I2SB at 1000: 4.6)  | 40 h |
| jpeg-10        | I2SB                | 1   | 3.7 (I2SB at 1000: 3.6)  | 40 h |
| inpaint-center | I2SB, ODE bridge    | 4   | 5.1; at 2: 5.3; at 1: 6.7 | 24 h |
| e2h-2          | DDBM                | 2   | 0.67                     | 1 h |
| e2h-1          | DDBM                | 1   | 1.26                     | 40 h |
| diode-2        | DDBM                | 2   | 3.12                     | 7 h |
| diode-1        | DDBM                | 1   | 4.07                     | 48 h |
| inpaint-dbim   | DBIM, class labels  | 4   | 4.03; at 2: 4.23; at 1: 5.87 | 12 h |

FID is that of the paper's protocol: Inception, ImageNet against the training or validation set, edges2handbags and
DIODE against the training set. It is not computed here: --mode=sample writes restored test images for clean-fid, all of
them with --config.evaluate.examples=0 (else 1000; the host's memory holds them), and with --input those of a folder.
Data: an ImageNet folder with train and val; edges2handbags as pix2pix ships it, or tfds:edges2handbags; and
tfds:diode_normals (see python -m ibmd_jax.data.prepare --help). The full-size rows were built and traced here, not run.
"""

import importlib.util
from pathlib import Path

import ml_collections

ADAMW = {
    "name": "adamw",
    "learning_rate": 5e-5,
    "b1": 0.9,
    "b2": 0.999,
    "clip": 0.0,
    "warmup": 0,
    "decay": False,
    "weight_decay": 0.0,
}
RADAM = {**ADAMW, "name": "radam", "learning_rate": 1e-5}

IMAGENET = {"source": "folder:imagenet", "flip": True, "size": 256, "fit": "resize-crop", "filter": "bilinear"}
I2SB = {
    "data": IMAGENET,
    "bridge": {"name": "i2sb_table", "beta_max": 0.3, "steps": 1000},
    "network": {"name": "i2sb-256", "conditional": False},
    "parametrisation": {"name": "eps"},
    "sampler": {"name": "ancestral", "time_grid": "i2sb"},
    "optimizer": ADAMW,
    # Both losses are plain errors of x_0; noise enters by three more channels. "raw": the teacher without averaging.
    "distill": {
        "steps": 3000,
        "noise_channels": 3,
        "student_weight": "one",
        "auxiliary_weight": "one",
        "auxiliary_start": "raw",
    },
}
DDBM = {
    "data": {"flip": True, "fit": "stretch", "filter": "bicubic", "corruption": "none"},
    "bridge": {"name": "ddbm_vp", "beta_d": 2.0, "beta_min": 0.1},
    "parametrisation": {"name": "ddbm"},
    "sampler": {"name": "dbim", "time_grid": "dbim", "clip": True},
    "optimizer": RADAM,
    "distill": {
        "noise_channels": 1,
        "same_z": True,
        "student_weight": "native_ten_to_1",
        "auxiliary_weight": "native",
        "t_min": 1e-4,
    },
}
E2H = {
    **DDBM,
    "data": {**DDBM["data"], "source": "paired:edges2handbags", "size": 64},
    "network": {"name": "ddbm-e2h-64", "conditional": True, "dropout": 0.1},
}
DIODE = {
    **DDBM,
    "data": {**DDBM["data"], "source": "tfds:diode_normals", "size": 256, "filter_T": "nearest"},
    "network": {"name": "ddbm-diode-256", "conditional": True, "dropout": 0.1},
}
DBIM = {
    "data": {**IMAGENET, "corruption": {"name": "inpaint-center", "fill": "grey"}},
    "bridge": {"name": "i2sb_table", "beta_max": 1.0, "steps": 1000, "dbim": True},
    "network": {"name": "dbim-imagenet-256", "conditional": True},
    "parametrisation": {"name": "eps"},
    "sampler": {"name": "dbim", "time_grid": "dbim", "clip": True},
    "optimizer": {**RADAM, "learning_rate": 3e-6},
    "distill": {**DDBM["distill"], "steps": 3000, "student_steps": 4, "auxiliary_updates": 1},
}


def row(base: dict, data: dict | None = None, **distill) -> dict:
    return {**base, "data": {**base["data"], **(data or {})}, "distill": {**base["distill"], **distill}}


ROWS = {
    "sr4x-bicubic": row(I2SB, {"corruption": "sr4x-bicubic"}),
    "sr4x-pool": row(I2SB, {"corruption": "sr4x-pool"}),
    "jpeg-5": row(I2SB, {"corruption": "jpeg-5"}, steps=2000),
    "jpeg-10": row(I2SB, {"corruption": "jpeg-10"}),
    "inpaint-center": {
        **row(
            I2SB,
            {"corruption": "inpaint-center"},
            steps=2000,
            student_steps=4,
            multistep="posterior",
            rollout="ema",
            start="raw",
            noise_channels=0,  # the hole of x_T is noise already
            student_weight="ten_to_2",
        ),
        "bridge": {"name": "i2sb_table", "beta_max": 1.0, "steps": 1000, "ot_ode": True},
    },
    "e2h-1": row(E2H, steps=14000),
    "e2h-2": row(E2H, steps=300, student_steps=2),
    "diode-1": row(DIODE, steps=3700),
    "diode-2": row(DIODE, steps=500, student_steps=2),
    "inpaint-dbim": DBIM,
}
TINY = {"channels": 32, "multipliers": (1, 2), "blocks": 1, "attention": (2,), "head_channels": 16}


def get_config(arg: str = "jpeg-5") -> ml_collections.ConfigDict:
    """arg: a name of ROWS, or one followed by "-quicktest"."""
    name = arg.removesuffix("-quicktest")
    if name not in ROWS:
        raise ValueError(f"configs/paper.py has the rows {', '.join(ROWS)}, each also with -quicktest, not {arg!r}")
    chosen, config = ROWS[name], _defaults()
    config.name = f"paper-{arg}"
    config.data.update(chosen["data"])
    with config.unlocked():
        config.bridge = chosen["bridge"]
        config.network = {**chosen["network"], "dtype": "bfloat16", "remat": "block"}
        config.parametrisation = chosen["parametrisation"]
        config.evaluate.sampler.update(chosen["sampler"])
        config.distill.student_optimizer = config.distill.auxiliary_optimizer = chosen["optimizer"]
    config.schedule.fsdp_min_size = 2**14  # nearly all of a large network is split: most of its leaves are not large
    common = {
        "student_steps": 1,
        "batch_size": 256,
        "auxiliary_updates": 5,
        "ema_decay": 0.99,
        "t_min": 1e-6,
        "time_sampler": "uniform",
    }
    config.distill.update(**{**common, **chosen["distill"]})
    for start in ("start", "auxiliary_start"):
        if config.distill[start] == "raw":
            config.distill[start] = f"teachers/{name}-raw"
    t_min = config.distill.t_min
    config.teacher.update(checkpoint=f"teachers/{name}", weight="native", ema_decay=0.99, t_min=t_min)
    config.evaluate.update(nfe=(1, 2, 10), features="none", batch_size=16, examples=1000)
    if arg != name:
        _quicktest(config)
    return config


def _quicktest(config: ml_collections.ConfigDict) -> None:
    """The same job on the embedded emoji: a network of the same kind, its own teacher, a few steps."""
    paired, labels = config.data.corruption == "none", config.name.startswith("paper-inpaint-dbim")
    config.data.update(source="emoji:pairs" if paired else "emoji", size=32)
    with config.unlocked():
        config.network = {"name": "adm", **TINY, "conditional": config.network.conditional, "classes": 10 * labels}
    config.teacher.update(checkpoint="", steps=20, batch_size=16)
    config.teacher.optimizer.warmup = 5
    config.distill.update(steps=3, batch_size=8, auxiliary_updates=1, start="", auxiliary_start="")
    for optimizer in (config.distill.student_optimizer, config.distill.auxiliary_optimizer):
        optimizer.learning_rate = 1e-4
    config.evaluate.update(nfe=(1, 2), features="emoji", batch_size=32, examples=32)
    config.schedule.update(log_every=1, save_every=20, picture_every=20)


def _defaults() -> ml_collections.ConfigDict:
    """Every field with the value of configs/inpaint.py, which stands beside this file."""
    spec = importlib.util.spec_from_file_location("inpaint", Path(__file__).with_name("inpaint.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()
