"""32-px images from noise, in one step or a few: a diffusion teacher and the methods that distil it.

python -m ibmd_jax.main --config=configs/generate.py                        emoji, Di-Bregman, one step
python -m ibmd_jax.main --config=configs/generate.py:sfddm,fashion-classes  another method, other data
python -m ibmd_jax.main --config=configs/generate.py:sfddm,quicktest        a minute: the same job, too small to be good

Methods: dibregman, ibmd (one step), sfddm (16 steps), progressive (one fold: 32 steps to 16). Data: emoji; emoji-names,
conditioned on what they show; after python -m ibmd_jax.data.prepare fashion_mnist also fashion, and fashion-classes,
conditioned on the class. --mode=compare then draws what teacher and student make of the same noise.
benchmarks/leaderboard.py compares the methods; benchmarks/results/leaderboard.md has times and numbers.

Equally spaced times, and t_start, are for bridges with T = 1. On edm, whose T is 80, set config.distill.times (sfddm)
and t_start, and the log_normal time_sampler of teacher and student; progressive has no field for times, and dibregman's
ratio_mean, with its ten equal parts of [0, T], is of no use there.
"""

import importlib.util
from pathlib import Path

import ml_collections

ADAM = {"name": "adam", "b1": 0.0, "b2": 0.999, "clip": 0.0, "warmup": 0, "decay": False, "weight_decay": 0.0}
ALL = {"batch_size": 32, "accumulate": 1, "start": ""}
# What trains an auxiliary network. t_start: the time that the student is told, with noise of that time's deviation:
# told T, a diffusion model answers with the mean of all images.
AUXILIARY = {
    **ALL,
    "steps": 1000,
    "student_steps": 1,
    "student_optimizer": {**ADAM, "learning_rate": 2e-4, "decay": True},
    "auxiliary_start": "",
    "auxiliary_updates": 4,
    "auxiliary_optimizer": {**ADAM, "learning_rate": 1e-3},
    "student_weight": "one",
    "auxiliary_weight": "native",
    "noise_channels": 0,
    "t_start": 0.75,
    "ema_decay": 0.99,
    "t_min": 0.02,
    "time_sampler": "stratified",
}
ALONE = {
    **ALL,
    "steps": 2000,
    "batch_size": 64,
    "student_steps": 16,
    "student_optimizer": {**ADAM, "learning_rate": 5e-4, "b1": 0.9, "clip": 1.0, "decay": True},
    "ema_decay": 0.99,
}
METHODS = {
    "dibregman": {
        **AUXILIARY,
        "divergence": "jensen_shannon",  # the name of an h, or {"name": "power", "exponent": 0.5}
        "classifier": "auxiliary",  # whose features tell p from q: the auxiliary network's, or its "own"
        "reference": "data",  # what it takes for p: clean images, or the "teacher"'s samples
        "reference_steps": 16,  # of these
        "normalise": True,
        "logit_clip": 10.0,
        "ratio_clip": (0.05, 10.0),
        "ratio_mean": True,
        "weight_mean": True,
        "adversarial": 0.0,
    },
    "ibmd": {
        **AUXILIARY,
        "multistep": "marginal",
        "rollout": "student",
        "same_z": False,
        "blind": False,
        "pretraining": 0,
        "normalise": True,
        "real_data": (1.0, 1.0),
    },
    "sfddm": {
        **ALONE,
        "student_weight": "native",
        "times": (),  # of the student's steps, increasing to T; (): equally spaced
        "hidden": "latents",  # or "features", which with output_weight = 1 are the authors' terms, or "none"
        "output_weight": 0.0,  # that of a student which equals its teacher
        "hidden_weight": 1.0,
        "chain": 4,  # teacher's steps in one of the student's, for "latents"
        "distance": "l1",
    },
    "progressive": {**ALONE, "student_weight": "truncated_snr"},
}
FASHION = {"source": "tfds:fashion_mnist", "channels": 1, "fit": "pad"}
GREY = {"out_channels": 1, "channels": (48, 96), "patch": 4, "attention": (1,)}  # some four times faster
TEXT = {"embedding": 128, "channels": (64, 128), "patch": 4, "attention": (1,)}
DATA = {
    "emoji": ({}, {}),
    "emoji-names": ({"source": "emoji:names", "flip": False}, TEXT),  # names say left and right
    "fashion": (FASHION, GREY),
    "fashion-classes": (FASHION, {**GREY, "classes": 10}),
}


def distillation(method: str) -> dict:
    """config.distill of a method. Its divergence may be a name, or a name with settings, whatever it was first."""
    fields = {"method": method, **METHODS[method]}
    if "divergence" in fields:
        fields["divergence"] = ml_collections.FieldReference(fields["divergence"], field_type=object)
    return fields


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """arg: a name of METHODS, one of DATA, and quicktest, with commas, in any order; each may be left out."""
    names = [name for name in arg.split(",") if name]
    known = {**METHODS, **DATA, "quicktest": None}
    for name in names:
        if name not in known:
            raise ValueError(f"configs/generate.py has the variants {', '.join(known)}, not {name!r}")
    if any(sum(name in table for name in names) > 1 for table in (METHODS, DATA)):
        raise ValueError(f"configs/generate.py takes one method and one kind of data, not {arg!r}")
    method = next((name for name in names if name in METHODS), "dibregman")
    kind = next((name for name in names if name in DATA), "emoji")
    data, network = DATA[kind]
    config = _defaults()
    config.name = f"generate-{kind}-{method}"
    config.data.update(corruption="pure-noise", **data)
    with config.unlocked():
        config.bridge = {"name": "diffusion_cosine"}
        config.parametrisation = {"name": "v"}
        config.network.update(network)
        config.distill = distillation(method)
    config.evaluate.sampler.update(name="dbim", time_grid="uniform")  # DDIM; ancestral is DDPM
    config.teacher.update(steps=6000, weight="native", t_min=1e-3)
    config.evaluate.update(nfe=(1, 4, 16, 64), features=kind.split("-")[0])
    config.schedule.update(save_every=200, picture_every=200)
    if "quicktest" in names:
        config.name += "-quicktest"
        config.network.update(channels=(16,), attention=(), groups=4)
        config.teacher.update(steps=60, batch_size=16)
        config.teacher.optimizer.warmup = 10
        config.distill.update(steps=5, batch_size=8)
        if "auxiliary_updates" in config.distill:
            config.distill.auxiliary_updates = 1
        config.evaluate.update(nfe=(1, 4, 16), batch_size=32, examples=32)
        config.schedule.update(log_every=5, save_every=20, picture_every=20)
    return config


def _defaults() -> ml_collections.ConfigDict:
    """Every field with the value of configs/inpaint.py, which stands beside this file."""
    spec = importlib.util.spec_from_file_location("inpaint", Path(__file__).with_name("inpaint.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()
