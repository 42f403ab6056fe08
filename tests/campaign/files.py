"""Damaged files under every reader: read, or refused in one line; nothing else, and within seconds."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import random
import shutil
import signal
import struct
import sys
import traceback
import warnings
from pathlib import Path

import numpy as np
import scipy.io
import torch
from PIL import Image

from latentrobust.data.arrays import read_array
from latentrobust.data.corruptions.files import MANIFEST, Corrupted
from latentrobust.data.images.idx import read_idx
from latentrobust.data.images.pickles import read_pickle
from latentrobust.data.images.svhn import read_mat
from latentrobust.data.lights import scene_folder
from latentrobust.data.pictures import decoded, header
from latentrobust.errors import InputError
from latentrobust.networks import classifiers, cvae
from latentrobust.perturbation_sets import CVAESet
from latentrobust.perturbation_sets.store import load_perturbation_set, save_perturbation_set
from latentrobust.perturbation_sets.stored import read_checkpoint
from latentrobust.reporting.finished import find_runs
from latentrobust.robustness.journal import CertificateJournal
from latentrobust.tasks.store import load_model, save_model

from .promises import Outcome

SECONDS = 20
WORDS = (b"\0", b"\xff" * 8, b"{" * 200, b"\x80\x05", b"nan", b"1e999", b"-1", b"\x7fELF", b"${oc.env:HOME}", b"null")


def mutated(content: bytes, chance: random.Random) -> bytes:
    """A file with one to three faults."""
    for _ in range(chance.randint(1, 3)):
        kind, place = chance.randrange(8), chance.randrange(max(len(content), 1))
        head = chance.randrange(min(len(content), 256) or 1)  # faults in headers are the interesting ones
        if kind == 0:
            content = content[:place]
        elif kind == 1:
            content = content[:head]
        elif kind in (2, 3):
            where = head if kind == 2 else place
            content = content[:where] + bytes([chance.randrange(256)]) + content[where + 1 :]
        elif kind == 4:
            content = content[:head] + chance.choice(WORDS) + content[head:]
        elif kind == 5:
            content = content[:head] + struct.pack(">q", chance.choice((-1, 2**31, 2**62, 0))) + content[head + 8 :]
        elif kind == 6:
            content += content[: chance.randrange(64)]
        else:
            content = b"" if chance.random() < 0.1 else content[head:] + content[:head]
    return content


def samples(place: Path):
    """A sound file of each kind, by name, with who reads it."""
    place.mkdir(parents=True, exist_ok=True)
    levels = np.arange(2 * 4 * 4, dtype=np.uint8).reshape(2, 4, 4)
    idx = b"\0\0\x08\x03" + struct.pack(">3I", 2, 4, 4) + levels.tobytes()
    (place / "idx").write_bytes(idx)
    (place / "idx.gz").write_bytes(gzip.compress(idx))
    for protocol in (2, 5):
        record = {"data": levels.reshape(2, 16), "labels": [0, 1]}
        (place / f"pickle{protocol}").write_bytes(pickle.dumps(record, protocol=protocol))
    scipy.io.savemat(
        place / "mat", {"X": np.zeros((4, 4, 3, 2), np.uint8), "y": np.ones((2, 1), np.uint8)}, appendmat=False
    )
    np.save(place / "array.npy", levels)
    for ending, mode in (("png", "RGB"), ("jpg", "RGB"), ("tif", "L"), ("bmp", "L"), ("webp", "RGB")):
        Image.new(mode, (8, 6), 90).save(place / f"picture.{ending}")
    network = cvae.build("mnist_fc", image_shape=[1, 4, 4], hidden=4, latent=2)
    save_perturbation_set(CVAESet(network, "bernoulli", 1.0), place / "set")
    model = classifiers.build("lenet5")
    save_model(model, place / "model", image_shape=(1, 28, 28), classes=10, data="")
    torch.save({"state_dict": {"w": torch.zeros(2)}, "perturbation_set": {"a": 1}}, place / "checkpoint.ckpt")
    CertificateJournal(place / "journal", {"n": 1}).add({0: {"radius": 1.0}, 1: {"radius": 2.0}})
    run = place / "run"
    run.mkdir(exist_ok=True)
    (run / "config.yaml").write_text("overrides: ['a=${oc.env:HOME}']\npaths: {output_dir: x, data_dir: y}\nseed: 0\n")
    (run / "metrics.json").write_text(json.dumps({"accuracy/clean": 0.5, "warnings": []}))
    (run / "DONE").touch()
    corrupted = place / "corrupted"
    corrupted.mkdir(exist_ok=True)
    np.save(corrupted / "fog_5.npy", np.zeros((2, 4, 4, 3), np.uint8))
    (corrupted / MANIFEST).write_text(json.dumps({"files": {}, "split": "test", "images": ""}))
    for scene in range(3):
        (place / "scenes" / f"s{scene}").mkdir(parents=True, exist_ok=True)
        for light in "ab":
            Image.new("L", (6, 4), 80).save(place / "scenes" / f"s{scene}" / f"{light}.png")
    scene_folder(str(place / "scenes"))
    return {
        "idx": read_idx,
        "idx.gz": read_idx,
        "pickle2": read_pickle,
        "pickle5": read_pickle,
        "mat": read_mat,
        "array.npy": lambda path: read_array(path, "r"),
        **{f"picture.{ending}": _picture for ending in ("png", "jpg", "tif", "bmp", "webp")},
        "set/config.json": lambda path: load_perturbation_set(path.parent),
        "set/model.safetensors": lambda path: load_perturbation_set(path.parent),
        "model/config.json": lambda path: load_model(path.parent),
        "model/model.safetensors": lambda path: load_model(path.parent),
        "checkpoint.ckpt": _checkpoint,
        "journal": lambda path: CertificateJournal(path, {"n": 1}),
        "run/config.yaml": lambda path: find_runs(path.parent),
        "run/metrics.json": lambda path: find_runs(path.parent),
        "corrupted/fog_5.npy": _corruptions,
        f"corrupted/{MANIFEST}": _corruptions,
        "scenes/s1/a.png": lambda path: scene_folder(str(path.parents[1])),
        "index of a pack": lambda path: scene_folder(str(path.parents[1])),
        "images of a pack": lambda path: scene_folder(str(path.parents[1])),
    }


def _picture(path):
    header(path)
    decoded(path, "RGB")


def _checkpoint(path):
    read_checkpoint(path)
    for load in (load_perturbation_set, load_model):
        try:
            load(path)
        except InputError:
            continue


def _corruptions(path):
    Corrupted(path.parent, 2, (3, 4, 4)).rows("fog", 5, torch.tensor([0, 1]))


def _file(place: Path, name: str) -> Path:
    packed = sorted((place / "scenes" / ".packed").glob("*.json" if name.startswith("index") else "*.npy"))
    return packed[0] if name.endswith("of a pack") else place / name


def campaign(place: Path, tally, count: int, seed: int = 0):
    """``count`` damaged files, read in a process of their own (which may not take more than 4 GiB)."""
    readers = samples(place / "sound")
    chance = random.Random(seed)
    names = [chance.choice(sorted(readers)) for _ in range(count)]
    for start in range(0, count, 50):
        part = names[start : start + 50]
        for name, number, broken in _in_a_process(place, readers, part, seed + start):
            tally.add(Outcome("a damaged file: read, or refused in one line", f"{name} {number}", broken))


def _in_a_process(place, readers, names, seed):
    """Outcomes of damaged files; a crash of the process is the outcome of the file that it was reading."""
    progress = place / "progress.jsonl"
    progress.write_text("")
    done = 0
    while done < len(names):
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            _read_all(place, readers, names, done, seed, progress)
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        found = [json.loads(line) for line in progress.read_text().splitlines()]
        if status:
            found.append([names[len(found)], len(found), f"the process ended with {os.waitstatus_to_exitcode(status)}"])
            progress.write_text("".join(json.dumps(line) + "\n" for line in found))
        done = len(found)
    return found


def _read_all(place, readers, names, first, seed, progress):
    import resource  # noqa: PLC0415

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (4 << 30),) * 2)
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGALRM, _too_long)
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    for number in range(first, len(names)):
        name, chance = names[number], random.Random(f"{seed} {number}")
        work = place / "damaged"
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(place / "sound", work)
        path = _file(work, name)
        path.write_bytes(mutated(path.read_bytes(), chance))
        broken = None
        signal.alarm(SECONDS)
        try:
            readers[name](path)
        except InputError as error:
            text = str(error)
            broken = (
                "several lines" if "\n" in text else "it advises unsafe loading" if "weights_only" in text else None
            )
        except _TooLongError:
            broken = "hangs"
        except BaseException as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            broken = f"{type(error).__name__}: {str(error)[:150]} ({Path(where.filename).name}:{where.lineno})"
        signal.alarm(0)
        with progress.open("a") as file:
            file.write(json.dumps([name, number, broken]) + "\n")


class _TooLongError(BaseException):
    pass


def _too_long(*_):
    raise _TooLongError
