"""Every setting of a configuration reaches what it is for: with values that tell each from all others."""

import functools
import inspect

import config_files
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parameters import perturb

from ibmd_jax import methods
from ibmd_jax.bridges import I2SB
from ibmd_jax.bridges.times import TIME_SAMPLERS
from ibmd_jax.build import build, build_data, build_model
from ibmd_jax.build import methods as wiring
from ibmd_jax.core.errors import UserError

DISTILL = {
    "student_weight": "ten_to_3",
    "auxiliary_weight": "ten_to_5",
    "ema_decay": 0.31,
    "t_min": 0.011,
    "accumulate": 2,
    "time_sampler": "end",
    "normalise": True,
    "auxiliary_updates": 3,
    "pretraining": 1,
    "rollout": "ema",
    "multistep": "posterior",
    "logit_clip": 7.0,
    "ratio_clip": (0.2, 5.0),
    "ratio_mean": False,
    "adversarial": 0.3,
    "chain": 7,
    "distance": "l2",
    "hidden_weight": 0.7,
    "output_weight": 0.4,
    "steps": 9,
}
TEACHER = {"weight": "ten_to_4", "ema_decay": 0.77, "t_min": 0.033, "accumulate": 4, "time_sampler": "log_normal"}
NETWORKS = {"student_optimizer", "auxiliary_optimizer", "optimizer", "reference", "classifier"}  # made of the settings


@pytest.mark.parametrize("method", ["ibmd", "sfddm", "progressive", "dibregman"])
def test_every_setting_reaches_its_method(monkeypatch, method):
    config = config_files.load("generate").get_config(f"{method},quicktest")
    distill, seen, rates = config.distill, {}, []
    distill.update({name: value for name, value in DISTILL.items() if name in distill})
    for rate, name in enumerate(name for name in ("student_optimizer", "auxiliary_optimizer") if name in distill):
        distill[name].learning_rate = 0.1 + rate
    config.teacher.update(**TEACHER, steps=5)
    config.teacher.optimizer.learning_rate = 9.0

    def watch(name, made):
        def called(*args, **settings):
            seen[name] = settings
            return made(*args, **settings)

        monkeypatch.setattr(methods, name, functools.wraps(made)(called))

    for name in (method, "teacher"):
        watch(name, getattr(methods, name))
    make_optimizer = wiring.make_optimizer

    def optimizer(**settings):
        rates.append((settings["learning_rate"], settings["steps"]))
        return make_optimizer(**settings)

    monkeypatch.setattr(wiring, "make_optimizer", functools.wraps(make_optimizer)(optimizer))
    build_model(config)

    for name, section in ((method, distill), ("teacher", config.teacher)):
        takes = inspect.signature(getattr(methods, name)).parameters
        assert {field for field in takes if field in section} - NETWORKS <= seen[name].keys()
        for field, value in seen[name].items():
            if field.endswith("weight") and callable(value):
                wanted = section.get(field, section.get("student_weight"))  # sfddm and progressive have one of them
                np.testing.assert_allclose(
                    value(I2SB(), jnp.float32([0.5])), 10 ** (0.5 * float(wanted.removeprefix("ten_to_"))), rtol=1e-5
                )
            elif field == "time_sampler":
                assert value is TIME_SAMPLERS[section.time_sampler]
            elif field in section and field not in ("steps", "divergence", "times"):
                assert value == section[field], field
    own = [(0.1, 9 - distill.get("pretraining", 0))]
    if "auxiliary_updates" in distill:
        own.append((1.1, 9 * 3))
    assert sorted(rates) == sorted([(9.0, 5), *own])


def test_the_seed_the_stage_and_the_flip_reach_what_is_drawn():
    config, found = config_files.load("inpaint").get_config("quicktest"), {}
    for seed, flip in ((0, False), (1, False), (0, True)):
        config.seed, config.data.flip = seed, flip
        data = build_data(config)
        found[seed, flip] = (
            next(data.batches("teacher", 8)(0)),
            data.test_batch(4),
            next(data.batches("distill", 8)(0)),
        )
    teacher, test, distill = found[0, False]
    other, other_test, _ = found[1, False]
    assert (teacher.x_0 != other.x_0).any()
    assert (teacher.x_0 != found[0, True][0].x_0).any()
    np.testing.assert_array_equal(test.x_0, other_test.x_0)
    assert (test.x_T != other_test.x_T).any()
    np.testing.assert_array_equal(teacher.x_0, distill.x_0)
    assert (teacher.x_T != distill.x_T).any()
    config.teacher.batch_size = 24
    assert len(next(build(config).batches("teacher")(0)).x_T) == 24


@pytest.mark.parametrize(("fit", "crop"), [("random-crop", 32), ("crop", 0)])
def test_crops_and_workers_reach_the_input(monkeypatch, fit, crop):
    config, seen = config_files.load("inpaint").get_config("quicktest"), {}

    def examples(source, **settings):
        seen.update(settings)
        return iter(())

    monkeypatch.setattr("ibmd_jax.build.data.examples", examples)
    config.data.update(fit=fit, workers=3)
    assert not list(build_data(config).batches("teacher", 8)(5))
    assert (seen["crop"], seen["workers"], seen["start_step"], seen["batch_size"]) == (crop, 3, 5, 8)


def test_labels_that_the_network_does_not_have_are_refused_when_they_come(tmp_path):
    images, label = np.zeros((40, 16, 16, 3), np.uint8), np.full(40, 7)
    label[[0, 20]] = 0  # those that are looked at first, of either split
    np.savez(tmp_path / "x.npz", x_0=images, label=label)
    config = config_files.load("inpaint").get_config("quicktest")
    config.data.update(source=f"npz:{tmp_path}/x.npz", size=16)
    config.network.classes = 4
    data = build_data(config)
    with pytest.raises(UserError, match="7"):
        data.test_batch(0)
    with pytest.raises(UserError, match="7"):
        next(data.batches("teacher", 16)(0))


def test_dropout_reaches_the_network_and_its_training(monkeypatch):
    config, seen = config_files.load("inpaint").get_config("quicktest"), []
    small = {
        "channels": 16,
        "multipliers": (1,),
        "blocks": 1,
        "attention": (),
        "head_channels": 16,
        "groups": 4,
        "conditional": False,
    }
    with config.unlocked():
        config.network = {"name": "adm", **small, "dropout": 0.5}

    def called(denoise, *args, made=methods.teacher, **settings):
        seen.append((denoise, settings["dropout"]))
        return made(denoise, *args, **settings)

    monkeypatch.setattr(methods, "teacher", called)
    params = perturb(build_model(config).init_params(jax.random.key(0)))
    ((denoise, dropout),) = seen
    assert dropout
    x, t = jnp.ones((1, 32, 32, 3)), jnp.ones(1)
    first, again, other, whole = (
        jax.jit(denoise)(params, x, t, x, None, **drop)
        for drop in ({"key": jax.random.key(1)}, {"key": jax.random.key(1)}, {"key": jax.random.key(2)}, {})
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert (first != whole).any()
