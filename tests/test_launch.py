"""The scripts in launch/: what they would run, and two processes that work, stop and fail as one."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from ibmd_jax.train.checkpoint import load_params

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / "launch").iterdir())
TINY = [
    "--config=tests/config_files.py",
    "--mode=teacher",
    "--config.teacher.batch_size=8",
    "--config.schedule.log_every=1",
    "--config.schedule.save_every=20",
    "--config.schedule.picture_every=1000",
    "--config.schedule.fsdp_min_size=256",
]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_shellcheck_finds_nothing(script):
    done = subprocess.run([Path(sys.executable).parent / "shellcheck", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert os.access(script, os.X_OK) or script.suffix == ".sbatch"


def dry(*args, **variables):
    environment = {**os.environ, **variables}
    done = subprocess.run(["bash", *args], cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def pasted(line):
    """The words that bash makes of a line."""
    printed = subprocess.run(["bash", "-c", f"printf '%s\\n' {line}"], capture_output=True, text=True, check=True)
    return printed.stdout.splitlines()


def test_dry_runs_print_commands_to_paste():
    given = ["--config=a b", "--config.network.channels=(8,)"]
    main = ["python3", "-m", "ibmd_jax.main", *given]
    (line,) = dry("launch/local.sh", "--dry_run", *given)
    assert pasted(line) == main
    (line,) = dry("launch/slurm.sbatch", "--dry_run", *given)
    assert pasted(line) == ["srun", *main, "--coordinator=auto"]
    lines = dry("launch/multiprocess.sh", "2", "--dry_run", *given, PORT="12355")
    assert len(lines) == 2
    for i, line in enumerate(lines):
        end = ["--coordinator=localhost:12355", "--processes=2", f"--process={i}"]
        assert pasted(line)[-len(main + end) :] == main + end


def test_runs_on_one_host_meet_at_ports_of_their_own():
    runs = [dry("launch/multiprocess.sh", "2", "--dry_run", "--config=a") for _ in range(2)]
    ports = [{re.search(r"localhost:(\d+)", line).group(1) for line in lines} for lines in runs]
    assert [len(found) for found in ports] == [1, 1]
    assert ports[0] != ports[1]


def test_dry_runs_for_a_tpu_print_the_commands():
    tpu = ["launch/tpu.sh", "train", "pod", "--zone=here", "--dry_run", "--", "--config=a"]
    (line,) = dry(*tpu)
    assert line.startswith("gcloud compute tpus tpu-vm ssh pod --zone=here --worker=all --command=cd\\ ibmd_jax")
    assert "--coordinator=auto" in line
    (log,) = dry("launch/tpu.sh", "log", "pod", "--zone=here", "--dry_run")
    (stop,) = dry("launch/tpu.sh", "stop", "pod", "--zone=here", "--dry_run")
    assert pasted(log)[-2:] == ["--worker=0", "--command=tail -n 50 -f ibmd_jax/run.log"]
    assert pasted(stop)[-2:] == ["--worker=all", "--command=kill -TERM $(cat ibmd_jax/run.pid)"]
    create = dry("launch/tpu.sh", "create", "pod", "--zone=here", "--type=v6e-16", "--spot", "--dry_run")
    assert create == [
        "gcloud compute tpus tpu-vm create pod --zone=here --accelerator-type=v6e-16 --version=v2-alpha-tpuv6e --spot "
    ]
    assert len(dry("launch/tpu.sh", "setup", "pod", "--zone=here", "--dry_run")) == 3


def test_a_run_on_a_tpu_outlives_its_connection_and_stops_by_its_number(tmp_path):
    """What the workers are told, told to a shell here whose python3 sleeps."""
    bin = tmp_path / "ibmd_jax" / ".venv" / "bin"
    bin.mkdir(parents=True)
    (bin / "activate").write_text(f"PATH={bin}:$PATH\n")
    (bin / "python3").write_text('#!/bin/sh\necho "$@"\nexec sleep 60\n')
    (bin / "python3").chmod(0o755)

    def told(action, *args):
        (line,) = dry("launch/tpu.sh", action, "pod", "--zone=here", "--dry_run", *args)
        command = pasted(line)[-1].removeprefix("--command=")
        return subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True, timeout=20)

    log = tmp_path / "ibmd_jax" / "run.log"
    log.write_text("what ended the run before\n")
    told("train", "--", "--config=a b")
    process = int((tmp_path / "ibmd_jax" / "run.pid").read_text())
    wait_until(lambda: "config" in log.read_text())
    with pytest.raises(subprocess.CalledProcessError):  # one at a time
        told("train", "--", "--config=another")
    assert log.read_text() == "what ended the run before\n-m ibmd_jax.main --config=a b --coordinator=auto\n"
    told("stop")
    wait_until(lambda: not Path(f"/proc/{process}").exists() or "zombie" in Path(f"/proc/{process}/status").read_text())


def wait_until(true):
    end = time.time() + 20
    while not true():
        assert time.time() < end
        time.sleep(0.05)


def test_a_signal_to_the_local_script_is_one_to_the_run(tmp_path):
    (tmp_path / "python3").write_text(
        "#!/bin/sh\ntrap 'echo heard; exit 5' TERM\necho up\nwhile :; do sleep 0.05; done\n"
    )
    (tmp_path / "python3").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    process = subprocess.Popen(["bash", ROOT / "launch/local.sh"], env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "up\n"
    process.terminate()
    assert process.communicate(timeout=20)[0] == "heard\n"
    assert process.returncode == 5


def test_processes_share_out_the_gpus_that_are_given():
    given = {**os.environ, "CUDA_VISIBLE_DEVICES": "4,6"}
    script = ["bash", "launch/multiprocess.sh", "2", "--dry_run", "--config=a"]
    lines = subprocess.run(script, cwd=ROOT, env=given, capture_output=True, text=True, check=True).stdout.splitlines()
    assert [pasted(line)[:2] for line in lines] == [
        ["env", "CUDA_VISIBLE_DEVICES=4"],
        ["env", "CUDA_VISIBLE_DEVICES=6"],
    ]


def test_a_slurm_process_has_all_gpus_of_its_node(tmp_path):
    (tmp_path / "srun").write_text('#!/bin/sh\necho "$JAX_LOCAL_DEVICE_IDS"\n')
    (tmp_path / "srun").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_GPUS_ON_NODE": "4"}
    done = subprocess.run(["bash", ROOT / "launch/slurm.sbatch"], env=environment, capture_output=True, text=True)
    assert done.stdout == "0,1,2,3\n"
    # JAX reads this variable; without it, it would take the one GPU of SLURM_LOCALID.
    tell = "from ibmd_jax.train.processes import connect; connect('auto', 1, 0); import jax; "
    tell += "print(jax.config._read('jax_cuda_visible_devices'))"
    slurm = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}
    environment |= {**slurm, "SLURM_LOCALID": "0", "JAX_PLATFORMS": "cpu", "JAX_LOCAL_DEVICE_IDS": done.stdout.strip()}
    done = subprocess.run([sys.executable, "-c", tell], env=environment, capture_output=True, text=True)
    assert done.stdout == "0,1,2,3\n", done.stderr


def test_a_slurm_process_has_all_cpus_of_its_task(tmp_path):
    (tmp_path / "srun").write_text('#!/bin/sh\necho "${SRUN_CPUS_PER_TASK-unset}"\n')
    (tmp_path / "srun").chmod(0o755)
    environment = {name: v for name, v in os.environ.items() if not name.endswith("CPUS_PER_TASK")}
    environment["PATH"] = f"{tmp_path}:{os.environ['PATH']}"
    for cpus, seen in (({}, "unset"), ({"SLURM_CPUS_PER_TASK": "32"}, "32")):
        script, given = ["bash", ROOT / "launch/slurm.sbatch"], environment | cpus
        assert subprocess.run(script, env=given, capture_output=True, text=True).stdout == f"{seen}\n"


def test_setting_up_a_tpu_tells_what_is_left_out(tmp_path):
    script = tmp_path / "launch" / "tpu.sh"
    script.parent.mkdir()
    shutil.copy(ROOT / "launch/tpu.sh", script)
    git = ["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    for args in (["init", "-q"], ["add", "."], ["commit", "-qm", "all"]):
        subprocess.run([*git, *args], check=True)

    def told():
        setup = ["bash", script, "setup", "pod", "--zone=here", "--dry_run"]
        return subprocess.run(setup, capture_output=True, text=True, check=True).stderr

    assert told() == ""
    (tmp_path / "new.py").write_text("")
    assert "not committed are left out" in told()


@pytest.mark.parametrize(
    "args", [["launch/multiprocess.sh"], ["launch/multiprocess.sh", "two"], ["launch/tpu.sh", "up"]]
)
def test_wrong_arguments_show_the_usage(args):
    done = subprocess.run(["bash", *args], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert args[0] in done.stderr


def start(environment, folder, devices, *args, processes=2):
    """launch/multiprocess.sh, or launch/local.sh for one process."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    path = f"{Path(sys.executable).parent}:{environment['PATH']}"
    script = ["launch/multiprocess.sh", str(processes)] if processes > 1 else ["launch/local.sh"]
    return subprocess.Popen(
        ["bash", *script, *TINY, f"--workdir={folder}", *args],
        cwd=ROOT,
        env={
            **environment,
            "PATH": path,
            "JAX_NUM_CPU_DEVICES": str(devices),
            "PORT": port,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process):
    out, _ = process.communicate(timeout=280)
    return process.returncode, out


def losses(folder, stage="teacher"):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    events = EventAccumulator(str(folder / stage / "events"), size_guidance={"tensors": 0}).Reload()
    return {e.step: float(make_ndarray(e.tensor_proto)) for e in events.Tensors("loss")}


def exported(folder):
    meta = json.loads((folder / "teacher" / "export" / "meta" / "metadata").read_text())
    flat = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in meta["shapes"].items()}
    return load_params(folder / "teacher" / "export", unflatten_dict(flat, sep="/"))[0]


def wait_for(process, path):
    end = time.time() + 200
    while not path.exists() and process.poll() is None and time.time() < end:
        time.sleep(0.05)
    assert path.exists()


def children(process):
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


@pytest.mark.timeout(900)
def test_two_processes_are_one_run_that_may_stop_and_go_on_elsewhere(environment, tmp_path):
    """120 steps on 1 process of 4 devices; and on 2 processes of 2 each, stopped by SIGTERM, then by the loss of either
    of them, and on 1 process of 1 device to the end: the same losses."""
    code, out = finish(start(environment, tmp_path / "one", 4, "--config.teacher.steps=120", processes=1))
    assert code == 0, out

    folder, steps = tmp_path / "two", "--config.teacher.steps=120"
    process = start(environment, folder, 2, steps)
    wait_for(process, folder / "teacher" / "checkpoints" / "20")
    os.kill(children(process)[1], signal.SIGTERM)  # one is told, both stop
    code, out = finish(process)
    assert code == 143, out
    assert len(re.findall(r"stopped by SIGTERM at teacher step \d+, saved", out)) == 2, out

    for lost, saved in ((1, 60), (0, 80)):
        process = start(environment, folder, 2, steps)
        wait_for(process, folder / "teacher" / "checkpoints" / str(saved))
        os.kill(children(process)[lost], signal.SIGKILL)
        begin = time.time()
        code, out = finish(process)
        assert code != 0
        assert time.time() - begin < 100
        assert re.search("failed, or lost another|another task died", out), out  # ours, or that of JAX

    code, out = finish(start(environment, folder, 1, steps, processes=1))
    assert code == 0, out
    assert re.search(r"resuming at step (80|100)", out), out
    first, second = losses(tmp_path / "one"), losses(folder)
    assert sorted(first) == sorted(second) == list(range(1, 121))
    np.testing.assert_allclose([second[i] for i in range(1, 20)], [first[i] for i in range(1, 20)], atol=1e-6)
    np.testing.assert_allclose([second[i] for i in first], [first[i] for i in first], atol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3), exported(tmp_path / "one"), exported(folder))

    given = ["--mode=distill", "--config.distill.steps=8", f"--config.teacher.checkpoint={folder}/teacher/export"]
    for place, devices, processes in ((tmp_path / "student", 4, 1), (tmp_path / "students", 2, 2)):
        code, out = finish(start(environment, place, devices, *given, processes=processes))
        assert code == 0, out
    first, second = (losses(tmp_path / name, "distill") for name in ("student", "students"))
    assert sorted(first) == sorted(second) == list(range(1, 9))
    np.testing.assert_allclose([second[i] for i in first], [first[i] for i in first], atol=1e-6)
    for mode in ("evaluate", "sample"):
        code, out = finish(start(environment, tmp_path / "students", 2, *given, f"--mode={mode}"))
        assert code == 0, out
    report = json.loads((tmp_path / "students" / "report.json").read_text())
    assert {row["label"] for row in report["rows"]} == {"student", "teacher"}
    assert len(list((tmp_path / "students" / "samples").iterdir())) == report["test_images"]
