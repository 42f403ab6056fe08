"""Sweeps as folders of jobs: claims, workers that die, lists that differ."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from omegaconf import OmegaConf

from latentrobust.errors import InputError
from latentrobust.interrupts import Stopped
from latentrobust.lock import FAILED, FolderLock
from latentrobust.reporting.sweep import write_sweep_table
from latentrobust.sweep import main, status
from latentrobust.sweeping import engines
from latentrobust.sweeping.jobs import Job, Sweep, fingerprint
from latentrobust.sweeping.multirun import _can_send, _check_job, _check_nobody_works
from latentrobust.sweeping.work import OUTPUT, running, work

# Stands in for a training: one process per folder at a time, a while of work, and a note of having finished.
FAKE = """
import fcntl, json, os, socket, sys, time
place, seconds, log, configuration = sys.argv[1:5]
os.makedirs(place, exist_ok=True)
lock = open(place + "/.lock", "a+")
try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    sys.exit(2)
if os.path.exists(place + "/DONE"):
    sys.exit(2)
lock.truncate(0)
lock.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid()}) + "\\n")
lock.flush()
open(place + "/config.yaml", "w").write(configuration)
time.sleep(float(seconds))
if float(seconds) < 0.001:
    open(place + "/FAILED", "w").write("InputError: told to fail\\n")
    sys.exit(2)
open(place + "/metrics.json", "w").write(json.dumps({"number": int(place.rsplit("/", 1)[1])}))
open(log, "a").write(place + "\\n")
open(place + "/DONE", "w").close()
os.unlink(place + "/.lock")
"""


def configuration(number):
    return {"seed": number, "overrides": [f"seed={number}"], "paths": {}, "job_type": "train"}


def make(folder, count, app="train"):
    jobs = [Job(n, (f"seed={n}", "a=1"), fingerprint(configuration(n))) for n in range(count)]
    return Sweep.create(folder, app, jobs)


def fake(seconds=0.05, failing=()):
    def command(sweep, job):
        wait = 0 if job.number in failing else seconds
        text = OmegaConf.to_yaml(OmegaConf.create(configuration(job.number)))
        return [sys.executable, "-c", FAKE, str(sweep.place(job)), str(wait), str(sweep.folder / "log"), text]

    return command


def test_a_worker_does_what_is_open_and_says_what_failed(tmp_path, capsys):
    sweep = make(tmp_path / "s", 4)
    failed = work(sweep.folder, command=fake(failing=[2]))
    assert [job.number for job in failed] == [2]
    rows = list(csv.DictReader((sweep.folder / "sweep.csv").open()))
    assert [row["state"] for row in rows] == ["DONE", "DONE", "FAILED", "DONE"]
    out = capsys.readouterr()
    assert "job 3 of 4: seed=3" in out.out
    assert "job 2 failed: InputError: told to fail" in out.err
    # A later worker tries what failed again, once, and leaves the rest alone.
    assert work(sweep.folder, command=fake()) == []
    assert sorted((sweep.folder / "log").read_text().split()) == sorted(str(sweep.place(job)) for job in sweep.jobs)
    assert "seed=0" not in capsys.readouterr().out


@pytest.mark.parametrize("ahead", [-600, 600])
def test_a_worker_tries_failed_jobs_again_once_whatever_its_clock_says(tmp_path, monkeypatch, ahead):
    sweep = make(tmp_path / "s", 2)
    monkeypatch.setattr(time, "time", lambda now=time.time: now() + ahead)
    tried = []

    def counted(sweep, job):
        tried.append(job.number)
        assert len(tried) < 9, "it is tried for ever"
        return fake(failing=[1])(sweep, job)

    for _ in range(2):
        assert [job.number for job in work(sweep.folder, command=counted)] == [1]
        time.sleep(0.05)  # the second worker begins after the failure
    assert tried == [0, 1, 1]


def test_a_job_that_dies_without_a_word_is_tried_again_and_then_given_up(tmp_path, capsys):
    sweep = make(tmp_path / "s", 1)
    kill = [sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"]
    assert len(work(sweep.folder, command=lambda *_: kill)) == 1
    said = capsys.readouterr()
    assert said.out.count("job 0 of 1") == 3
    assert "ended with code -9" in said.err
    broken = [sys.executable, "-c", "raise SystemExit('no such option')"]
    assert len(work(sweep.folder, command=lambda *_: broken)) == 1
    assert sweep.state(sweep.jobs[0]).detail == "no such option"
    assert capsys.readouterr().out.count("job 0 of 1") == 1  # its own word is believed


STOPPED = """
import pathlib, sys
place = pathlib.Path(sys.argv[1])
place.mkdir(exist_ok=True)
(place / "config.yaml").write_text(sys.argv[2])
(place / "FAILED").write_text("interrupted by SIGTERM")
sys.exit(130)
"""


def test_a_job_that_was_told_to_stop_goes_on_and_not_for_ever(tmp_path, capsys):
    """Slurm tells whoever is there before it takes a machine away; the job has not failed."""
    sweep = make(tmp_path / "s", 1)
    job = sweep.jobs[0]
    text = OmegaConf.to_yaml(OmegaConf.create(configuration(0)))
    stop = [sys.executable, "-c", STOPPED, str(sweep.place(job)), text]
    commands = [stop, fake()(sweep, job)]
    assert work(sweep.folder, command=lambda *_: commands.pop(0)) == []
    assert "job 0 was told to stop: it goes on" in capsys.readouterr().err
    other = make(tmp_path / "t", 1)
    stop[3] = str(other.place(other.jobs[0]))
    subprocess.run(stop, check=False)
    assert other.state(other.jobs[0]).name == "STOPPED"
    assert len(work(other.folder, command=lambda *_: stop)) == 1
    assert other.state(other.jobs[0]).detail == "told to stop 3 times"
    assert other.state(other.jobs[0]).name == "FAILED"


WAITS = """
import pathlib, signal, sys, time
def end(*_):
    time.sleep(1)
    pathlib.Path(sys.argv[1], "put away").touch()
    sys.exit(130)
signal.signal(signal.SIGTERM, end)
pathlib.Path(sys.argv[1], "ready").touch()
time.sleep(30)
"""


def stopped_at_work(sweep, claims, number):
    with running([sys.executable, "-c", WAITS, str(claims)], sweep, claims):
        while not (claims / "ready").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), number)
        time.sleep(5)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_worker_that_is_told_to_stop_waits_for_its_job(tmp_path, monkeypatch, number):
    """Longer than a step of training may take: the job writes its checkpoint."""
    monkeypatch.setattr("latentrobust.interrupts.GRACE", 0.2)
    sweep = make(tmp_path / "s", 1)
    claims = sweep.claims(sweep.jobs[0])
    claims.mkdir(parents=True)
    with pytest.raises(Stopped):
        stopped_at_work(sweep, claims, number)
    assert (claims / "put away").exists()


def test_fifty_jobs_three_workers_and_a_killer(tmp_path):
    sweep = make(tmp_path / "s", 50)
    script = (
        "import sys; sys.path[:0] = [sys.argv[2]]\n"
        "from tests.test_sweeping import fake\nfrom latentrobust.sweeping.work import work\n"
        "work(sys.argv[1], poll=0.1, command=fake(0.15))\n"
    )
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

    def begin():
        return subprocess.Popen(
            [sys.executable, "-c", script, str(sweep.folder), here],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    workers, chance, killed = [begin() for _ in range(3)], random.Random(0), 0
    ended = time.monotonic() + 240
    while time.monotonic() < ended and not all(sweep.state(job).name == "DONE" for job in sweep.jobs):
        time.sleep(0.5)
        begun = len(list(sweep.folder.glob("*/config.yaml")))
        if begun > 5 * (killed + 1) and killed < 4:  # while they are at it
            number = chance.randrange(3)
            workers[number].send_signal(signal.SIGKILL)
            workers[number].wait()
            workers[number], killed = begin(), killed + 1
    for worker in workers:
        worker.wait(60)
    assert killed >= 2
    assert sorted((sweep.folder / "log").read_text().split()) == sorted(str(sweep.place(job)) for job in sweep.jobs)
    rows = list(csv.DictReader((sweep.folder / "sweep.csv").open()))
    assert [row["number"] for row in rows] == [str(number) for number in range(50)]


def test_a_job_whose_worker_was_killed_while_it_began_is_left_alone(tmp_path, capsys):
    """It has not locked its folder yet, as long as it imports PyTorch."""
    sweep = make(tmp_path / "s", 1)
    slow = f"import time\nprint('begun', flush=True)\ntime.sleep(1.5)\n{FAKE}"
    script = (
        "import sys; sys.path[:0] = [sys.argv[2]]\n"
        "from tests.test_sweeping import fake\nfrom latentrobust.sweeping.work import work\n"
        "def command(sweep, job):\n"
        "    python, flag, _, *rest = fake()(sweep, job)\n"
        "    return [python, flag, sys.argv[3], *rest]\n"
        "work(sys.argv[1], poll=0.1, command=command)\n"
    )
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    worker = subprocess.Popen([sys.executable, "-c", script, str(sweep.folder), here, slow])
    output, until = sweep.claims(sweep.jobs[0]) / OUTPUT, time.monotonic() + 60
    while time.monotonic() < until and not (output.is_file() and "begun" in output.read_text()):
        time.sleep(0.05)
    worker.kill()
    worker.wait()
    assert sweep.state(sweep.jobs[0]).name == "RUNNING"
    assert work(sweep.folder, 0.1, fake()) == []
    assert len((sweep.folder / "log").read_text().splitlines()) == 1
    assert capsys.readouterr().err == ""
    assert not (output.parent / FAILED).exists()


def test_overwriting_does_everything_again_and_keeps_what_was(tmp_path):
    sweep = make(tmp_path / "s", 3)
    assert work(sweep.folder, 0.01, fake()) == []
    shorter = Sweep.create(sweep.folder, "train", sweep.jobs[:2], overwrite=True)
    assert not any(sweep.place(job).exists() for job in sweep.jobs)
    assert [(sweep.folder / ".earlier" / "1" / str(job.number) / "DONE").is_file() for job in sweep.jobs] == [True] * 3
    shorter.claims(shorter.jobs[1]).mkdir(parents=True)
    lock = FolderLock(shorter.claims(shorter.jobs[1]))
    lock.acquire()
    with pytest.raises(InputError, match="job 1 is running"):
        Sweep.create(sweep.folder, "train", sweep.jobs, overwrite=True)
    lock.release()
    assert work(sweep.folder, 0.01, fake()) == []
    assert len((sweep.folder / "log").read_text().splitlines()) == 5
    assert len(list(csv.DictReader((sweep.folder / "sweep.csv").open()))) == 2


def test_a_job_that_ends_well_with_another_configuration_is_not_begun_for_ever(tmp_path, capsys):
    """Such as after an update that has changed a default in the middle of a sweep."""
    sweep = make(tmp_path / "s", 2)
    begun = []

    def changed(sweep, job):
        begun.append(job.number)
        *command, _ = fake()(sweep, job)
        return [*command, OmegaConf.to_yaml(OmegaConf.create({**configuration(job.number), "new": 1}))]

    assert [job.number for job in work(sweep.folder, 0.01, changed)] == [0, 1]
    assert begun == [0, 1]
    assert "job 0 failed: its folder holds a finished run with another configuration" in capsys.readouterr().err


def test_jobs_run_where_their_list_was_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sweep = make(tmp_path / "s", 1)
    (tmp_path / "else").mkdir()
    monkeypatch.chdir(tmp_path / "else")
    found = Sweep(sweep.folder)
    assert found.directory == tmp_path
    found.directory = tmp_path / "gone"
    with pytest.raises(InputError, match="gone, where it was made: it is not here"), running(["true"], found, tmp_path):
        pass


def test_a_checkpoint_to_go_on_from_tells_runs_apart_unless_it_is_their_own(tmp_path):
    own = {"paths": {"output_dir": str(tmp_path / "run")}, "seed": 1}
    plain = fingerprint(own)
    assert fingerprint({**own, "ckpt_path": None}) == plain
    assert fingerprint({**own, "ckpt_path": f"{tmp_path}/run/checkpoints/last.ckpt"}) == plain
    others = {fingerprint({**own, "ckpt_path": f"{tmp_path}/{name}/checkpoints/last.ckpt"}) for name in "ab"}
    assert len(others | {plain}) == 3


def test_a_list_of_jobs_is_fixed(tmp_path):
    sweep = make(tmp_path / "s", 3)
    assert make(sweep.folder, 3).jobs == sweep.jobs
    with pytest.raises(InputError, match="another sweep, of 3 jobs of train, not 2 of train"):
        make(sweep.folder, 2)
    with pytest.raises(InputError, match="not 3 of evaluate"):
        make(sweep.folder, 3, "evaluate")
    other = [*sweep.jobs[:2], Job(2, ("seed=7", "a=1"), "else")]
    with pytest.raises(InputError, match=r"job 2 had seed=2, not seed=7; name another paths.output_dir"):
        Sweep.create(sweep.folder, "train", other)
    assert Sweep.create(sweep.folder, "train", other, overwrite=True).jobs == other
    with pytest.raises(InputError, match="has changed"):
        Sweep.create(sweep.folder, "train", [*other[:2], Job(2, ("seed=7", "a=1"), "again")])
    with pytest.raises(InputError, match=r"holds no jobs.json"):
        Sweep(tmp_path)
    (sweep.folder / "jobs.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read as a list of jobs"):
        Sweep(sweep.folder)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(configuration(0))))
    with pytest.raises(InputError, match="folder of a single run"):
        make(tmp_path / "run", 2)


def test_jobs_do_not_run_one_after_the_other_beside_a_process_that_is_at_one(tmp_path):
    sweep = make(tmp_path / "s", 2)
    _check_nobody_works(sweep)
    sweep.place(sweep.jobs[1]).mkdir()
    lock = FolderLock(sweep.place(sweep.jobs[1]))
    lock.acquire()
    try:
        with pytest.raises(InputError, match=r"job 1 is running \(process .*\): wait for its end"):
            _check_nobody_works(sweep)
    finally:
        lock.release()
    _check_nobody_works(sweep)


def test_a_logger_without_its_key_is_told_before_the_first_job(monkeypatch, composed):
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_BASE_URL", "http://localhost:9")
    cfg = composed("train", "experiment=digits/rts", "logger=wandb", "trainer=cpu")
    with pytest.raises(InputError, match=r"^job 3: WANDB_MODE=online needs a key: set WANDB_API_KEY"):
        _check_job(cfg, 3, "train")
    _can_send.cache_clear()
    monkeypatch.setenv("WANDB_MODE", "offline")
    _check_job(cfg, 3, "train")
    _can_send.cache_clear()


def test_a_table_of_jobs_has_columns_that_several_of_them_have(tmp_path):
    """Radii of a learned set are its own: a column for each would have one value."""
    for number in (0, 1):
        folder = tmp_path / str(number)
        folder.mkdir()
        told = [f"seed={number}", "launcher=basic", "paths.output_dir=s"] if number else [f"seed={number}"]
        (folder / "config.yaml").write_text(OmegaConf.to_yaml({"overrides": told, "paths": {}, "seed": number}))
        metrics = {"robust/p50": 0.5, f"robust/eps={1 + number}": 0.5, "robust/eps=0.3": 0.1}
        (folder / "metrics.json").write_text(json.dumps(metrics))
    with write_sweep_table(tmp_path).open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["run", "state", "overrides", "robust/p50", "robust/eps=0.3"]
    assert [row["overrides"] for row in rows] == ["seed=0", "seed=1"]  # what launchers say of places is no difference


def test_what_a_job_is_now(tmp_path, capsys):
    sweep = make(tmp_path / "s", 4)
    work(sweep.folder, command=fake(failing=[1, 2, 3]))
    for number in (2, 3):
        (sweep.folder / str(number) / "FAILED").unlink()
    (sweep.folder / "3" / "config.yaml").write_text("overrides: []\npaths: {}\nseed: 9\n")
    (sweep.folder / "3" / "DONE").touch()
    lock = FolderLock(sweep.claims(sweep.jobs[2]))
    lock.acquire()
    try:
        states, left = status(sweep)
        assert [state.name for state in states] == ["DONE", "FAILED", "RUNNING", "FAILED"]
        assert left is not None
        assert "another configuration" in states[3].detail
        main(["status", str(sweep.folder)])
        assert "1 done, 2 failed, 1 running" in capsys.readouterr().out
    finally:
        lock.release()
    with pytest.raises(SystemExit) as stopped:
        main(["work", str(tmp_path / "nowhere")])
    assert stopped.value.code == 2
    assert "holds no jobs.json" in capsys.readouterr().err


def test_engines_refuse_what_they_cannot_do(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"launcher\.engine must be one of joblib"):
        engines.start("nonsense", tmp_path, 1, {})
    with pytest.raises(InputError, match=r"launcher\.workers must be a positive number, got 0"):
        engines.start("joblib", tmp_path, 0, {})
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(InputError, match=r"needs submitit: pip install 'latentrobust\[cluster\]'"):
        engines.start("submitit_slurm", tmp_path, 1, {})


def test_fingerprints_do_not_know_places():
    one = {
        "seed": 1,
        "paths": {"output_dir": "/a/0"},
        "trainer": {"default_root_dir": "/a/0"},
        "launcher": {"engine": None},
    }
    other = json.loads(json.dumps(one).replace("/a/0", "/b/7").replace("null", '"ray"'))
    assert fingerprint(one) == fingerprint(other)
    assert fingerprint(one) != fingerprint({**one, "seed": 2})
