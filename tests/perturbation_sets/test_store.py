import json
import os
import pickle
import resource
import warnings

import pytest
import torch

from latentrobust import load_model, load_perturbation_set, save_perturbation_set
from latentrobust.errors import InputError, RobustnessWarning
from latentrobust.networks.cvae import build
from latentrobust.perturbation_sets import CVAESet, LatentBall, PerturbationSet, PixelBall, RTSSet
from latentrobust.perturbation_sets.base import SetAt
from latentrobust.perturbation_sets.coverage import Coverage
from latentrobust.perturbation_sets.store import CHECKPOINT_KEY, describe_cvae


def test_a_learned_set_survives_saving(small_set, tmp_path):
    small_set.latent_norms, small_set.data = {"p50": 1.5}, "digits"
    folder = save_perturbation_set(small_set, tmp_path / "shared" / "set")
    assert sorted(os.listdir(folder)) == ["config.json", "model.safetensors"]
    assert os.listdir(tmp_path / "shared") == ["set"]
    loaded = load_perturbation_set(folder)
    assert loaded.ball == small_set.ball
    assert loaded.latent_norms == {"p50": 1.5}
    assert loaded.data == "digits"
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    x, u = torch.rand(2, 1, 8, 8), torch.randn(2, 5)
    assert torch.equal(loaded.at(x).decode(u), small_set.at(x).decode(u))
    assert load_perturbation_set(folder, radius=1.25).ball.radius == 1.25


@pytest.mark.parametrize(
    "perturbations", [PixelBall((1, 8, 8), "l2", 0.7), RTSSet((1, 8, 8), degrees=20.0, shift=2, radius=0.5)]
)
def test_exact_sets_survive_saving(perturbations, tmp_path):
    perturbations.latent_norms, perturbations.data = {"p50": 0.3}, "digits"
    perturbations.coverage = Coverage(0.01, (0.1, 0.5), (0.5, 1.0), (0.4, 0.9), (0.6, 1.0), 8, 8, "test")
    loaded = load_perturbation_set(save_perturbation_set(perturbations, tmp_path / "set"))
    assert loaded.ball == perturbations.ball
    x, u = torch.rand(2, 1, 8, 8), perturbations.ball.uniform(torch.arange(2))
    assert torch.equal(loaded.at(x).decode(u), perturbations.at(x).decode(u))
    assert (loaded.latent_norms, loaded.data, loaded.coverage) == ({"p50": 0.3}, "digits", perturbations.coverage)
    assert load_perturbation_set(tmp_path / "set", radius="p50").ball.radius == 0.3
    assert load_perturbation_set(tmp_path / "set", radius=0.25).ball.radius == 0.25


def test_a_radius_that_a_set_cannot_have_is_not_called_damage(tmp_path):
    folder = save_perturbation_set(RTSSet((1, 8, 8)), tmp_path / "set")
    with pytest.raises(InputError, match=r"^radius=2: the radius of an RTS set is a share of its bounds"):
        load_perturbation_set(folder, radius=2)


def test_saving_replaces_an_older_set(small_set, tmp_path):
    save_perturbation_set(PixelBall((1, 8, 8)), tmp_path / "set")
    save_perturbation_set(small_set, tmp_path / "set")
    assert isinstance(load_perturbation_set(tmp_path / "set"), CVAESet)


def test_a_network_from_elsewhere_is_stored_without_a_name_and_must_be_given(tmp_path):
    def own():
        network = build("mnist_fc", image_shape=[1, 4, 4], hidden=8, latent=3)
        network.description = None
        return network

    original = CVAESet(own(), "gaussian", 2.0)
    folder = save_perturbation_set(original, tmp_path / "set")
    with pytest.raises(InputError, match="pass it as network="):
        load_perturbation_set(folder)
    loaded = load_perturbation_set(folder, network=own())
    x, u = torch.rand(2, 1, 4, 4), torch.randn(2, 3)
    assert torch.equal(loaded.at(x).decode(u), original.at(x).decode(u))


def test_saving_never_replaces_something_else(small_set, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="something other than a perturbation set"):
        save_perturbation_set(small_set, tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def changed(folder, **values):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"radius": None}, "stores no radius"),
        ({"radius": 0}, "must be positive"),
        ({"radius": -3.0}, "must be positive"),
        ({"radius": "big"}, "must be positive"),
        ({"kind": "other"}, "unknown kind"),
        ({"format": 99}, "format 99"),
        ({"likelihood": "poisson"}, "poisson"),
        ({"network": {"name": "os.system", "arguments": {}}}, "no CVAE network is called 'os.system'"),
        ({"network": {"name": "mnist_fc", "arguments": {"nonsense": 1}}}, "nonsense"),
        ({"network": {"name": "mnist_fc", "arguments": {"latent": -3}}}, "damaged"),
        ({"network": {"name": "mnist_conv", "arguments": {"image_shape": [1, 8, 8]}}}, "another model"),
        ({"image_shape": [1, 9, 9]}, r"\(1, 8, 8\).*\(1, 9, 9\)"),
    ],
)
def test_damaged_configurations_are_named_in_one_line(small_set, tmp_path, values, message):
    folder = save_perturbation_set(small_set, tmp_path / "set")
    changed(folder, **values)
    with pytest.raises(InputError, match=message) as error:
        load_perturbation_set(folder)
    assert "\n" not in str(error.value)
    assert str(folder) in str(error.value)


def test_damaged_weights_are_named(small_set, tmp_path):
    folder = save_perturbation_set(small_set, tmp_path / "set")
    raw = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(raw[:100])
    with pytest.raises(InputError, match="cannot read the perturbation set"):
        load_perturbation_set(folder)


def test_nothing_there_is_named(tmp_path):
    with pytest.raises(InputError, match="no perturbation set at"):
        load_perturbation_set(tmp_path / "nothing")
    with pytest.raises(InputError, match="no perturbation set at"):
        load_perturbation_set(tmp_path)


class Evil:
    def __reduce__(self):
        return os.system, ("touch evil-was-here",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda file: torch.save({"state_dict": {}, "x": Evil()}, file), "asks to run code"),
        (lambda file: file.write_bytes(pickle.dumps(Evil())), "cannot read the checkpoint"),
        (lambda file: file.write_bytes(b"garbage"), "cannot read the checkpoint"),
        (lambda file: torch.save([1, 2], file), "it holds a list"),
        (lambda file: torch.save({"state_dict": {}}, file), "not a checkpoint of a perturbation-set learner"),
    ],
)
def test_unsafe_and_unreadable_checkpoints_are_refused(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)  # where code in a file would leave its mark
    file = tmp_path / "bad.ckpt"
    content(file)
    with pytest.raises(InputError, match=message) as error:
        load_perturbation_set(file)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "evil-was-here").exists()


def test_a_checkpoint_without_a_radius_says_so(small_set, tmp_path):
    network = small_set.network
    description = describe_cvae(network, "bernoulli", None, {}, "digits")
    state = {f"network.{name}": value for name, value in network.state_dict().items()}
    torch.save({CHECKPOINT_KEY: description, "state_dict": state}, tmp_path / "x.ckpt")
    with pytest.raises(InputError, match="stores no radius"):
        load_perturbation_set(tmp_path / "x.ckpt")
    assert load_perturbation_set(tmp_path / "x.ckpt", radius=2.0).ball.radius == 2.0


def test_a_set_of_a_run_that_did_not_finish_is_said_to_be(small_set, tmp_path):
    run = tmp_path / "run"
    save_perturbation_set(small_set, run / "perturbation_set")
    for marker, text, message in (
        (None, "", "it has no DONE"),
        ("FAILED", "interrupted\n", "it ended with: interrupted"),
    ):
        (run / "config.yaml").write_text("seed: 0\npaths:\n  flow: null\noverrides: []\n")
        if marker:
            (run / marker).write_text(text)
        for place in (run, run / "perturbation_set"):
            with pytest.warns(RobustnessWarning, match=f"did not finish .{message}"):
                load_perturbation_set(place)
    (run / "FAILED").unlink()
    (run / "DONE").touch()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_perturbation_set(run)
        load_perturbation_set(save_perturbation_set(small_set, tmp_path / "shared"))
        (tmp_path / "config.yaml").write_text("somebody: else\n")  # no run has left this
        load_perturbation_set(tmp_path / "shared")


@pytest.mark.parametrize(
    "arguments",
    [
        {"hidden": 10**9},
        {"latent": 10**12},
        {"image_shape": [1, 10**5, 10**5]},
        {"hidden": 2**40, "latent": 2**40},
    ],
)
def test_a_configuration_cannot_ask_for_more_memory_than_its_weights(small_set, tmp_path, arguments):
    folder = save_perturbation_set(small_set, tmp_path / "set")
    file = folder / "config.json"
    configuration = json.loads(file.read_text())
    configuration["network"]["arguments"] |= arguments
    file.write_text(json.dumps(configuration))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match=r"far larger network|it is for images|damaged"):
        load_perturbation_set(folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KiB


@pytest.mark.parametrize("content", ["[" * 100_000, " " * (2 << 20), "[]", "", '{"format": NaN}'])
def test_odd_configurations_are_one_line(small_set, tmp_path, content):
    folder = save_perturbation_set(small_set, tmp_path / "set")
    (folder / "config.json").write_text(content)
    with pytest.raises(InputError) as error:
        load_perturbation_set(folder)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("state", [None, [], {"network.x": 1}, {1: torch.ones(1)}, {"a": {"b": torch.ones(1)}}, "x"])
@pytest.mark.parametrize("load", [load_perturbation_set, load_model])
def test_checkpoints_with_odd_contents_are_one_line(tmp_path, state, load):
    stored = {"perturbation_set": {"format": 1}, "classifier": {"network": None}, "state_dict": state}
    torch.save(stored if state is not None else {"perturbation_set": {}, "classifier": {}}, tmp_path / "x.ckpt")
    with pytest.raises(InputError) as error:
        load(tmp_path / "x.ckpt")
    assert "\n" not in str(error.value)


def test_shared_folders_are_readable_for_everybody(small_set, tmp_path):
    folder = save_perturbation_set(small_set, tmp_path / "set")
    save_perturbation_set(small_set, folder)  # again, over it
    assert {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()} == {
        "config.json": 0o644,
        "model.safetensors": 0o644,
    }
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


class Brighter(PerturbationSet):
    """Somebody's own set: every pixel becomes brighter or darker by the same share, which a weight scales."""

    def __init__(self, image_shape, most=0.5):
        super().__init__(tuple(image_shape), LatentBall((1,), "l2", most), "gaussian")
        self.most = most
        self.scale = torch.nn.Parameter(torch.ones(()))

    def condition(self, x, y=None):
        return BrighterAt(x, self.ball, self.scale)

    def describe(self):
        return {"image_shape": list(self.image_shape), "most": self.most}


class BrighterAt(SetAt):
    def __init__(self, x, ball, scale):
        super().__init__(x, ball)
        self.scale = scale

    def encode(self, x_tilde, offset=None):
        return (x_tilde / self.x - 1).flatten(1).mean(1, keepdim=True)

    def decode(self, u):
        return (self.x * (1 + self.scale * u[..., None, None])).clamp(0, 1)


def test_a_set_of_ones_own_is_stored_and_restored(tmp_path):
    own = Brighter((1, 4, 4), most=0.25)
    with torch.no_grad():
        own.scale.fill_(0.5)
    own.set_radius(0.125)
    folder = own.save(tmp_path / "own")
    with pytest.raises(InputError, match=r"set of .*Brighter.*if you trust it, name it with perturbation_set.of="):
        load_perturbation_set(folder)
    for of in (Brighter, f"{Brighter.__module__}.Brighter"):
        again = load_perturbation_set(folder, of=of)
        assert (float(again.scale), again.most, again.ball.radius) == (0.5, 0.25, 0.125)
    for of, message in ((int, "must be a class of perturbation sets"), ("no.such.Set", "cannot be imported")):
        with pytest.raises(InputError, match=message):
            load_perturbation_set(folder, of=of)


def test_a_set_that_says_nothing_of_itself_is_refused(tmp_path):
    class Silent(Brighter):
        describe = PerturbationSet.describe

    with pytest.raises(InputError, match=r"cannot save a Silent: define describe\(\)"):
        Silent((1, 4, 4)).save(tmp_path / "silent")
    assert not (tmp_path / "silent").exists()


def test_radii_by_name(small_set, tmp_path):
    small_set.latent_norms = {"p25": 1.0, "p50": 1.5, "p75": 2.0, "p95": 2.5, "max": 3.0}
    small_set.coverage = Coverage(
        0.01, (0.0, 1.0, 2.0), (0.1, 0.6, 0.9), (0.0, 0.4, 0.7), (0.3, 0.8, 1.0), 20, 5, "validation"
    )
    folder = small_set.save(tmp_path / "set")
    for name, radius in (("p95", 2.5), ("coverage=0.5", 1.0), ("coverage=0.9", 2.0), ("full", 3.0), (0.7, 0.7)):
        assert load_perturbation_set(folder, radius=name).ball.radius == radius
    assert load_perturbation_set(folder).coverage == small_set.coverage
    for name, message in (("coverage=0.95", "no radius covers 95%"), ("p99", "radius must be .*one of full, p25")):
        with pytest.raises(InputError, match=message):
            load_perturbation_set(folder, radius=name)


def test_what_was_measured_is_kept_for_the_radius_that_it_was_measured_at(tmp_path):
    perturbations = PixelBall((1, 4, 4), "l2", 1.0)
    perturbations.quality = {"radius": 1.0, "coverage/radius": 0.95, "quality/kl": float("nan")}
    perturbations.warnings = ("few pairs",)
    place = perturbations.save(tmp_path / "s")
    loaded = load_perturbation_set(place)
    assert loaded.quality == {"radius": 1.0, "coverage/radius": 0.95}
    assert loaded.warnings == ("few pairs",)
    assert load_perturbation_set(place, radius=0.5).quality == {}
    run = tmp_path / "run"
    for folder in ("perturbation_set", "mine"):
        PixelBall((1, 4, 4), "l2", 2.0).save(run / folder)
    (run / "metrics.json").write_text('{"radius": 2.0, "coverage/radius": 0.5, "accuracy/clean": 1.0}')
    (run / "config.yaml").write_text("overrides: []\npaths: {}\n")
    (run / "DONE").touch()
    of_run = {"radius": 2.0, "coverage/radius": 0.5}
    assert load_perturbation_set(run).quality == load_perturbation_set(run / "perturbation_set").quality == of_run
    assert load_perturbation_set(run / "mine").quality == {}  # of another set
