"""Inpainting of the embedded 32-px emoji: a hole of half the side, an I2SB teacher, an IBMD student of 1 to 4 steps.

python -m ibmd_jax.main --config=configs/inpaint.py              half an hour on 2 CPU cores: see README.md
python -m ibmd_jax.main --config=configs/inpaint.py:quicktest    a minute: the same job, too small to be good
python -m ibmd_jax.main --config=configs/inpaint.py:dibregman    Di-Bregman on a DDBM teacher
"""

import importlib.util
from pathlib import Path

import ml_collections


def spec(name: str) -> ml_collections.FieldReference:
    """A field for a name, or for {"name": ..., a setting: ...}: other fields keep the type of their first value."""
    return ml_collections.FieldReference(name, field_type=object)


def get_config(arg: str = "default") -> ml_collections.ConfigDict:
    """arg: "default", "quicktest" or "dibregman"."""
    if arg not in ("default", "quicktest", "dibregman"):
        raise ValueError(f"configs/inpaint.py has the variants default, quicktest and dibregman, not {arg!r}")
    config = ml_collections.ConfigDict(
        {
            "name": "inpaint",
            "seed": 0,
            "data": {
                "source": "emoji",
                "corruption": spec("inpaint-center"),  # "none" where the source has x_T
                "flip": True,
                "size": 32,
                "channels": 3,
                "fit": "resize-crop",
                "filter": "bilinear",
                "filter_T": "",
                "on_error": "raise",
                "workers": 0,
            },
            "bridge": {"name": "i2sb", "beta_min": 0.1, "beta_max": 1.0},
            "network": {
                "name": "unet",
                "channels": (32, 64, 64),
                "blocks": 1,
                "attention": (2,),
                "head_channels": 32,
                "groups": 16,
                "patch": 2,
                "out_channels": 3,  # data.channels
                "conditional": False,  # True: the network also sees x_T, as DDBM's do; I2SB's do not
                "classes": 0,  # labels that it is told: of the source, or of a mixture of corruptions
                "embedding": 0,  # or the width of the text that it is told
                "dtype": "float32",  # or bfloat16: of convolutions and attention
                "remat": "none",  # or block, full: what the backward pass computes again, to save memory
            },
            "parametrisation": {"name": "i2sb"},
            "teacher": {
                "checkpoint": "",  # folder of a teacher to use instead of training one; several with commas
                "combine": "mean",  # of several teachers: "mean", or "by_label" for a task each
                "weights": (),  # of their mean; (): equal
                "start": "",  # folder of parameters to start training from
                "steps": 2000,
                "batch_size": 64,
                "accumulate": 1,  # parts of a batch, one after the other: less memory, the same result
                "optimizer": {
                    "name": "adam",
                    "learning_rate": 1e-3,
                    "b1": 0.9,
                    "b2": 0.999,
                    "clip": 1.0,
                    "warmup": 100,
                    "decay": True,
                    "weight_decay": 0.0,  # for adamw
                },
                "weight": "one",
                "ema_decay": 0.999,
                "t_min": 1e-3,
                "time_sampler": "stratified",
            },
            "distill": {
                "method": "ibmd",  # configs/generate.py has the others
                "steps": 400,
                "batch_size": 32,
                "accumulate": 1,
                "start": "",  # of the student: a folder of parameters, or "random"; "": the teacher's
                "student_steps": 4,  # the most; it may take 1 or 2 as well
                "multistep": "marginal",
                "rollout": "student",  # whose parameters make the states of several steps; or "ema"
                "same_z": False,  # one z for all steps of a roll-out
                "blind": False,  # the student is not told the task
                "auxiliary_start": "",  # of the auxiliary network: the same, or "teacher"; "": as the student
                "auxiliary_updates": 4,
                "pretraining": 0,  # first steps that train the auxiliary network alone
                "student_optimizer": {
                    "name": "adam",
                    "learning_rate": 2e-4,
                    "b1": 0.0,
                    "b2": 0.999,
                    "clip": 0.0,
                    "warmup": 0,
                    "decay": True,
                    "weight_decay": 0.0,
                },
                "auxiliary_optimizer": {
                    "name": "adam",
                    "learning_rate": 1e-3,
                    "b1": 0.0,
                    "b2": 0.999,
                    "clip": 0.0,
                    "warmup": 0,
                    "decay": False,
                    "weight_decay": 0.0,
                },
                "student_weight": "ten_to_2",
                "auxiliary_weight": "one",
                "normalise": False,  # by the teacher's error, as SiD
                "real_data": (1.0, 1.0),  # RealUID's alpha and beta; below 1 clean images take part
                "noise_channels": 0,  # x_T is noisy inside the hole already
                "t_start": 0.0,  # what the first evaluation is told, 0: T; above 0 z enters in x_t, without channels
                "ema_decay": 0.99,
                "t_min": 1e-3,
                "time_sampler": "stratified",
            },
            "evaluate": {
                "nfe": (1, 2, 10, 100),
                "sampler": {"name": "ancestral", "time_grid": spec("uniform")},
                "batch_size": 200,
                "examples": 0,  # 0: all test images
                "features": "emoji",
            },
            "schedule": {"log_every": 10, "save_every": 100, "picture_every": 100, "keep": 3, "fsdp_min_size": 2**20},
        }
    )
    if arg == "dibregman":
        config.name = "inpaint-dibregman"
        found = importlib.util.spec_from_file_location("generate", Path(__file__).with_name("generate.py"))
        generate = importlib.util.module_from_spec(found)
        found.loader.exec_module(generate)
        with config.unlocked():
            kept = {name: config.distill[name] for name in ("steps", "t_min")}
            # Given x_T, the noise in its hole with it, x_0 still varies: the student needs noise of its own. It and
            # the rates are what students of teachers that see x_T need: ibmd_jax/methods/README.md.
            config.distill = {**generate.distillation(arg), **kept, "t_start": 0.9}
            config.distill.student_optimizer.update(learning_rate=1e-4, b1=0.9)
            config.distill.auxiliary_optimizer.update(learning_rate=3e-4, b1=0.9)
            config.bridge = {"name": "ddbm_vp", "beta_d": 2.0, "beta_min": 0.1}
            config.parametrisation = {"name": "ddbm", "sigma_0": 0.8, "sigma_T": 0.88, "covariance": 0.53}
        config.network.conditional = True  # its scores are those of x_t given x_T
        config.teacher.weight = "native"
    if arg == "quicktest":
        config.name = "inpaint-quicktest"
        config.network.update(channels=(16,), attention=(), groups=4)
        config.teacher.update(steps=60, batch_size=16)
        config.teacher.optimizer.warmup = 10
        config.distill.update(steps=10, batch_size=8, auxiliary_updates=2, student_steps=1)
        config.evaluate.update(nfe=(1, 2, 10), batch_size=32, examples=32)
        config.schedule.update(log_every=5, save_every=20, picture_every=20)
    return config
