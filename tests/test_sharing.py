"""What is shared can be loaded, read and repeated by others: remote names, cards, claims, exported programs."""

import json
import shutil
import sys
import types
import warnings

import pytest
import torch
from torch import nn

import latentrobust as lr
from latentrobust.errors import InputError, RobustnessWarning
from latentrobust.files import sha256_of
from latentrobust.networks import flows
from latentrobust.networks.cvae import build
from latentrobust.networks.flows.fully_connected import fully_connected
from latentrobust.perturbation_sets import FlowSet, PixelBall, RTSSet
from latentrobust.perturbation_sets.cvae import CVAESet
from latentrobust.remote import at_hand
from latentrobust.share import main
from latentrobust.sharing.card import stored_in
from latentrobust.sharing.exporting import Generator, export
from latentrobust.tasks.store import save_model
from latentrobust.transforms.affine import RotationTranslationScale

TINY = {
    "mnist_fc": {"image_shape": [1, 8, 8], "hidden": 16, "latent": 5},
    "structured": {"image_shape": [3, 16, 12], "latent": 6, "warps": 2, "residual": 4, "scales": 2, "field": 3},
    "unet": {"image_shape": [3, 16, 16], "channels": [4, 6, 8], "latents": [2, 2, 2], "pool": None},
}


def learned(name):
    torch.manual_seed(0)
    network = build(name, **TINY[name])
    for parameter in network.parameters():  # structured networks begin as the identity
        parameter.data += 0.05 * torch.randn_like(parameter)
    return CVAESet(network, "gaussian", radius=3.0).eval().requires_grad_(False)


class Classifier(torch.nn.Module):
    def __init__(self, classes=4):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten())
        self.last = torch.nn.Linear(4 * 36, classes)

    def forward(self, x):
        return self.last(self.layers(x))


class InPlace(Classifier):
    """Normalises its input where it lies."""

    def forward(self, x):
        return super().forward(x.sub_(0.5).div_(0.1))


@pytest.mark.parametrize("ending", [".pt2", ".onnx"])
@pytest.mark.parametrize("name", list(TINY))
def test_exported_generators_answer_as_sets_do(tmp_path, name, ending):
    perturbations = learned(name)
    path = tmp_path / f"set{ending}"
    assert export(perturbations, path) < 1e-5
    x, u = torch.rand(7, *perturbations.image_shape), torch.randn(7, *perturbations.ball.shape)
    expected = perturbations.at(x).decode(u[None])[0]
    if ending == ".pt2":
        answer = torch.export.load(path).module()(x, u)
    else:
        import onnxruntime  # noqa: PLC0415

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        feed = dict(zip([entry.name for entry in session.get_inputs()], (x.numpy(), u.numpy()), strict=True))
        answer = torch.from_numpy(session.run(None, feed)[0])
    assert (answer - expected).abs().max() < 1e-5
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_exact_sets_and_models_can_be_exported(tmp_path):
    for perturbations in (
        PixelBall((1, 8, 8), norm="linf", radius=0.1),
        RTSSet((1, 16, 16), RotationTranslationScale(45, 0.3, 4)),
    ):
        assert export(perturbations, tmp_path / "set.pt2") < 1e-5
    assert export(Classifier(), tmp_path / "model.onnx", image_shape=(1, 8, 8)) < 1e-5
    assert export(InPlace(), tmp_path / "in_place.pt2", image_shape=(1, 8, 8)) < 1e-5
    assert export(Classifier().double(), tmp_path / "model.pt2", image_shape=(1, 8, 8)) < 1e-5


def test_what_cannot_be_exported_is_said_and_leaves_nothing(tmp_path):
    class Data(torch.nn.Module):
        def forward(self, x):
            return x if float(x.sum()) > 0 else -x

    class Several(Classifier):
        def forward(self, x):
            return super().forward(x), x

    for what, path, options, message in (
        (Classifier(), "model.pth", {"image_shape": (1, 8, 8)}, "must end in"),
        (Classifier(), "model.pt2", {}, "needs image_shape"),
        (Classifier(), "model.pt2", {"image_shape": (1, 9, 8)}, r"the model fails on images \[3, 1, 9, 8\]"),
        (Several(), "model.pt2", {"image_shape": (1, 8, 8)}, "as a tensor, got tuple"),
        (FlowSet(fully_connected((1, 8, 8)), "l2", 1.0), "set.pt2", {}, "flows cannot be exported"),
        (Data(), "model.pt2", {"image_shape": (1, 8, 8)}, "cannot be exported to .pt2"),
    ):
        with pytest.raises(InputError, match=message):
            export(what, tmp_path / path, **options)
    assert not list(tmp_path.iterdir())


def test_a_generator_is_the_set():
    perturbations = learned("structured")
    x = torch.rand(2, 3, 16, 12)
    assert torch.allclose(Generator(perturbations)(x, torch.zeros(2, 6)), x, atol=2e-2)  # its centre is x, nearly


def test_claims_repeat_and_tell_what_changed():
    torch.manual_seed(0)
    model, perturbations = Classifier().eval(), PixelBall((1, 8, 8), norm="l2", radius=0.5)
    data = (torch.rand(12, 1, 8, 8), torch.arange(12) % 4)
    settings = {"robust": lr.RobustSettings(radii=[0.2, "full"])}
    first = lr.benchmark_model(model, perturbations, data, **settings)
    assert lr.benchmark_model(model, perturbations, data, **settings).to_json() == first.to_json()
    results = lr.assess(model, data=data, perturbations=perturbations, **settings)
    assert first.claims == {name: results.metrics[name] for name in sorted(results.metrics)}
    assert json.loads(first.to_json())["data"]["pairs"] == 12
    with pytest.raises(InputError, match="a function has no weights"):
        lr.benchmark_model(torch.sigmoid, perturbations, data)

    class Own(lr.RobustSettings):
        __repr__ = object.__repr__

    with pytest.raises(InputError, match="prints as an address"):
        lr.benchmark_model(model, perturbations, data, robust=Own())

    def differs(**changed):
        arguments = {"model": model, "perturbations": perturbations, "data": data, **settings} | changed
        other = lr.benchmark_model(**arguments)
        return [
            name for name in ("model", "perturbations", "data", "settings") if vars(other)[name] != vars(first)[name]
        ]

    other = Classifier().eval()
    other.load_state_dict(model.state_dict())
    assert differs(model=other) == []
    other.last.bias.data[0] += 1e-6
    assert differs(model=other) == ["model"]
    assert differs(perturbations=PixelBall((1, 8, 8), norm="l2", radius=0.6)) == ["perturbations"]
    assert differs(data=(data[0], data[1].roll(1))) == ["data"]
    assert differs(seed=1) == ["settings"]
    for changed in ({"classes": [1, 0, 2, 3]}, {"mean": [0.5], "std": [0.5]}):
        assert differs(model=lr.wrap(model, **changed)) == ["model"]
    soft = nn.Sequential(model, nn.Softmax(1))
    logits, logarithms = (
        lr.benchmark_model(lr.wrap(soft, outputs=outputs), perturbations, data, robust=None).model
        for outputs in ("logits", "probabilities")
    )
    assert logits != logarithms
    whole = lr.benchmark_model(lr.wrap(model, mean=[0.5], std=[0.5]), perturbations, data, robust=None)
    assert (
        whole.model != lr.benchmark_model(lr.wrap(model, mean=[0.4], std=[0.5]), perturbations, data, robust=None).model
    )
    named = PixelBall((1, 8, 8), norm="l2", radius=0.5)
    named.latent_norms = {"p50": 0.1}
    assert differs(perturbations=named) == ["perturbations"]
    assert differs(data=[(data[0][:5], data[1][:5]), (data[0][5:], data[1][5:])]) == []
    with pytest.raises(InputError, match="can be read once"):
        lr.benchmark_model(model, perturbations, iter([data]))


@pytest.fixture
def run(tmp_path):
    """The folder of a finished run with a set and two models."""
    folder = tmp_path / "run"
    perturbations = learned("mnist_fc")
    perturbations.data = "digits"
    perturbations.latent_norms = {"p50": 0.7}
    perturbations.save(folder / "perturbation_set")
    for name in ("robust", "plain"):
        save_model(Classifier(), folder / "models" / name / "model", image_shape=(1, 8, 8), classes=4, data="digits")
    (folder / "figures").mkdir()
    (folder / "figures" / "samples.png").write_bytes(b"a picture")
    (folder / "config.yaml").write_text(
        "name: lamps\njob_type: train\nseed: 3\npaths: {}\n"
        "overrides: [data=pairs, data.root=my pairs, seed=3, logger=wandb]\n"
        "evaluation: {robust: {attacks: {pgd: {}, aa: {}}}, certify: {n: 100, alpha: 0.001}}\n"
    )
    metrics = {
        "radius": 3.0, "quality/pgd_ae": 0.01, "coverage/radius": 0.9, "coverage/radius/low": 0.8,
        "coverage/radius/high": 0.95, "coverage/pairs": 40.0,
        "robust/accuracy/clean": 0.75, "robust/robust/p50": 0.5, "robust/robust/examples": 40.0,
        "robust/certified/full": 0.25, "robust/certified/examples": 16.0, "robust/smoothed/sigma": 0.5,
        "warnings": ["few pairs"],
    }  # fmt: skip
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "DONE").write_text("")
    return folder


def test_a_card_says_what_was_measured_and_its_limits(run, tmp_path):
    main(["card", str(run), str(tmp_path / "shared"), "--licence", "cc-by-4.0"])
    assert sorted(path.name for path in (tmp_path / "shared").iterdir()) == [
        "README.md", "config.json", "metrics.json", "model.safetensors", "picture.png",
    ]  # fmt: skip
    card = (tmp_path / "shared" / "README.md").read_text()
    weights = sha256_of(tmp_path / "shared" / "model.safetensors")
    for part in (
        "license: cc-by-4.0", "# lamps", "It contains 90 % [80, 95] of the perturbations", "few pairs", weights,
        "`python -m latentrobust.train data=pairs 'data.root=my pairs' seed=3`",
        "| PGD AE | 0.01 | Nearest point", "Data: digits",
    ):  # fmt: skip
        assert part in card
    assert "robust/p50" not in card
    assert "coverage/pairs" not in card
    again = lr.PerturbationSet.from_pretrained(tmp_path / "shared").state_dict()
    assert all(torch.equal(value, again[name]) for name, value in learned("mnist_fc").state_dict().items())
    main(["card", str(run), str(tmp_path / "model"), "--licence", "of nobody", "--model", "robust"])
    card = (tmp_path / "model" / "README.md").read_text()
    for part in (
        "license: other", "licence of the data: of nobody", "| accuracy/clean | 75.0 % | Images as they are. |",
        "into 4 classes", "with pgd and aa: 40 images",
        "| robust/p50 | 50.0 % [35, 65] | Right after these attacks within ε = 0.7. |",
        "σ = 0.5 in the latents, at most 100 draws", "| certified/full | 25.0 % [10, 49] | The smoothed model: right,",
        sha256_of(run / "perturbation_set" / "model.safetensors"),
    ):  # fmt: skip
        assert part in card
    assert lr.load_model(tmp_path / "model", network=Classifier())


def test_a_card_does_not_speak_of_coverage_where_the_report_does_not(run, tmp_path):
    metrics = json.loads((run / "metrics.json").read_text())
    coarse = {"coverage/tolerance": 0.13, "quality/no_change": 0.054, "coverage/p50": 1.0, "seen/set": 0.0}
    (run / "metrics.json").write_text(json.dumps(metrics | coarse))
    main(["card", str(run), str(tmp_path / "shared"), "--licence", "cc-by-4.0"])
    card = (tmp_path / "shared" / "README.md").read_text()
    assert "too coarse to say which share of unseen perturbations it contains" in card
    assert "90 %" not in card
    assert "coverage/" not in card


def test_a_card_does_not_call_known_images_unseen(run, tmp_path):
    metrics = json.loads((run / "metrics.json").read_text())
    known = {"seen/set": 0.4, "robust/seen/model": 0.3}
    (run / "metrics.json").write_text(json.dumps(metrics | known))
    for name, options, share in (("set", [], "40%"), ("model", ["--model", "robust"], "30%")):
        main(["card", str(run), str(tmp_path / name), "--licence", "mit", *options])
        card = (tmp_path / name / "README.md").read_text()
        assert f"On test images, of which {share} were also learned from" in card
        assert "unseen images" not in card
    metrics["plain/accuracy/clean"] = 0.5
    for name, share, expected in (
        ("plain", {"plain/seen/model": 0.0}, "On test images, which nothing was learned from;"),
        ("unknown", {}, "On test images; in brackets"),
    ):
        (run / "metrics.json").write_text(json.dumps(metrics | known | share))
        main(["card", str(run), str(tmp_path / name), "--licence", "mit", "--model", "plain"])
        assert expected in (tmp_path / name / "README.md").read_text()


@pytest.mark.parametrize(("norm", "certified"), [("l2", True), ("linf", False)])
def test_a_card_of_a_model_over_an_exact_set_says_its_radius(run, tmp_path, norm, certified):
    """Certificates around an ℓ∞ ball are of ℓ2 radii, which “full” does not say."""
    shutil.rmtree(run / "perturbation_set")
    with (run / "config.yaml").open("a") as file:
        file.write(f"perturbation_set: {{_target_: latentrobust.PixelBall, norm: {norm}, radius: 0.5}}\n")
    metrics = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps({**metrics, "radius": 0.5, "robust/robust/full": 0.25}))
    main(["card", str(run), str(tmp_path / "model"), "--licence", "mit", "--model", "robust"])
    card = (tmp_path / "model" / "README.md").read_text()
    assert "Right after these attacks within ε = 0.5. |" in card
    line = next(line for line in card.splitlines() if line.startswith("| certified/full"))
    assert (" within ε = 0.5" in line) == certified


def test_a_card_says_first_that_a_set_is_of_no_use(run, tmp_path):
    metrics = json.loads((run / "metrics.json").read_text())
    collapsed = {"quality/pgd_ae": 0.02, "quality/over_ae": 0.0201, "quality/no_change": 0.05}
    (run / "metrics.json").write_text(json.dumps(metrics | collapsed))
    main(["card", str(run), str(tmp_path / "shared"), "--licence", "mit"])
    assert "norm at most 3. **Collapsed: the nearest point, random" in (tmp_path / "shared" / "README.md").read_text()
    # Who loads it is told, from the run and from what was shared.
    for place in (run, tmp_path / "shared"):
        with pytest.warns(RobustnessWarning, match="about the set: Collapsed"):
            lr.load_perturbation_set(place)
        with warnings.catch_warnings():  # of a larger ball nothing is known
            warnings.simplefilter("error", RobustnessWarning)
            lr.load_perturbation_set(place, radius=30.0)
    for damaged in ('{"bits_per_dim": "many"}', "[]", "{"):  # says nothing, and is nothing to fail by
        (tmp_path / "shared" / "metrics.json").write_text(damaged)
        assert lr.load_perturbation_set(tmp_path / "shared")


def test_a_card_of_a_segmenter_speaks_of_pixels_and_of_no_other_model(run, tmp_path):
    metrics = json.loads((run / "metrics.json").read_text())
    metrics |= {"robust/miou/clean": 0.4, "robust/certified_image/p50": 0.125, "robust/certified/examples": 3}
    metrics |= {"warnings": ["few pairs", "plain: it is random", "robust: it is slow"]}
    (run / "metrics.json").write_text(json.dumps(metrics))
    config = (run / "config.yaml").read_text()
    pgd = "latentrobust.robustness.attacks.PGD"
    (run / "config.yaml").write_text(config.replace("{pgd: {}, aa: {}}", f"{{pgd: {{_target_: {pgd}}}}}"))
    main(["card", str(run), str(tmp_path / "model"), "--licence", "mit", "--model", "robust"])
    card = (tmp_path / "model" / "README.md").read_text()
    for part in (
        "image-segmentation]", "gives each pixel of images 1×8×8 in [0, 1] one of 4 classes. Accuracies are shares of",
        "| certified_image/p50 | 12.5 % | The smoothed model: pixels that are right and certified, all of an image at",
        "A certificate is of one pixel",
        "| miou/clean | 40.0 % | Mean intersection over union", "PGD alone often overstates", "- robust: it is slow",
    ):  # fmt: skip
        assert part in card
    assert "it is random" not in card
    assert json.loads((tmp_path / "model" / "metrics.json").read_text())["warnings"] == [
        "few pairs",
        "robust: it is slow",
    ]
    assert "image-classification" not in card


def test_a_card_names_no_radius_where_certificates_have_another_one(run, tmp_path):
    place = run / "perturbation_set" / "config.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | {"norm": "linf"}))
    main(["card", str(run), str(tmp_path / "model"), "--licence", "mit", "--model", "robust"])
    card = (tmp_path / "model" / "README.md").read_text()
    assert "Right after these attacks within ε = 0.7. |" in card
    assert "The smoothed model: right, and certified. |" in card


def test_a_card_of_a_flow_says_what_its_numbers_and_its_use_are(run, tmp_path):
    network = flows.build("fully_connected", image_shape=[1, 8, 8], classes=3, blocks=2, hidden=8).eval()
    shutil.rmtree(run / "perturbation_set")
    FlowSet(network, "linf", 0.3).save(run / "perturbation_set")
    metrics = {"radius": 0.3, "bits_per_dim": 5.25, "round_trip_error": 1e-6}
    (run / "metrics.json").write_text(json.dumps(metrics))
    main(["card", str(run), str(tmp_path / "flow"), "--licence", "mit"])
    card = (tmp_path / "flow" / "README.md").read_text()
    for part in (
        "with an offset of ℓ∞ norm at most 0.3.",
        "| bits_per_dim | 5.25 | Bits per",
        "perturbations.at(x, y)   # x",
    ):
        assert part in card


def test_an_only_model_without_a_name_is_said(run, tmp_path):
    shutil.copytree(run / "models" / "plain" / "model", run / "model")
    shutil.rmtree(run / "models")
    with pytest.raises(InputError, match="holds no model plain; its only model has no name: leave the name out"):
        stored_in(run, "plain")


def test_bad_input_of_sharing_is_one_line(run, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    (tmp_path / "unfinished").mkdir()
    for arguments, message in (
        (["card", str(tmp_path / "unfinished"), "new", "--licence", "mit"], "not the folder of a finished run"),
        (["card", str(run), str(tmp_path / "full"), "--licence", "mit"], "is not empty"),
        (["card", str(run), "new", "--licence", "mit", "--model", "other"], "its models are plain, robust"),
        (["export", str(run), "set.txt"], "must end in .pt2 or .onnx"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        error = capsys.readouterr().err
        assert stopped.value.code == 2
        assert message in error
        assert len(error.splitlines()) == 1
    with pytest.raises(InputError, match="is not the folder of a finished run"):
        stored_in(tmp_path / "full")


class Hub:
    """A hub in a folder: what the library's functions do, without a network."""

    def __init__(self, root):
        self.root, self.repositories = root, {}

    def HfApi(self):  # noqa: N802
        return self

    def create_repo(self, repository, private, exist_ok):
        assert exist_ok
        self.repositories.setdefault(repository, private)

    def upload_folder(self, folder_path, repo_id, commit_message):
        import shutil  # noqa: PLC0415

        assert commit_message
        shutil.copytree(folder_path, self.root / repo_id)

    def snapshot_download(self, repository, revision, allow_patterns):
        if repository not in self.repositories or revision not in (None, "main"):
            raise OSError(f"Repository Not Found: {repository}\nmore lines")
        return str(self.root / repository)


def test_sets_and_models_go_to_the_hub_and_come_back(run, tmp_path, monkeypatch, capsys):
    hub = Hub(tmp_path / "hub")
    monkeypatch.setattr("latentrobust.remote.the_hub", lambda: hub)
    monkeypatch.setattr("latentrobust.sharing.hub.the_hub", lambda: hub)
    main(["push", str(run), "me/lamps", "--licence", "mit"])
    assert "hub:me/lamps" in capsys.readouterr().out
    assert hub.repositories == {"me/lamps": True}  # nobody else sees it
    assert (tmp_path / "hub/me/lamps/README.md").is_file()
    stored = learned("mnist_fc")
    for loaded in (
        lr.load_perturbation_set("hub:me/lamps@main"),
        lr.load_perturbation_set("hub:me/lamps"),
        lr.PerturbationSet.from_pretrained("me/lamps", radius=2.0),
    ):
        assert all(torch.equal(value, stored.state_dict()[name]) for name, value in loaded.state_dict().items())
    assert loaded.ball.radius == 2.0
    assert stored.push_to_hub("me/alone", private=False) == "hub:me/alone"
    assert hub.repositories["me/alone"] is False
    main(["push", str(run), "me/model", "--licence", "mit", "--model", "robust", "--public"])
    assert lr.load_model("hub:me/model", network=Classifier())
    for name, message in (
        ("hub:me/none", "cannot be had"),
        ("hub:me/lamps@old", "cannot be had"),
        ("hub:me", "must be"),
    ):
        with pytest.raises(InputError, match=message) as error:
            lr.load_perturbation_set(name)
        assert "\n" not in str(error.value)


def test_without_a_network_the_hub_says_so_in_one_line(monkeypatch):
    pytest.importorskip("huggingface_hub")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match="cannot be had from the Hugging Face hub"):
        lr.load_perturbation_set("hub:me/a-set-that-nobody-has")


def test_artifacts_are_read_by_name_and_of_the_right_kind(run, monkeypatch):
    asked = []

    class Artifact:
        type = "perturbation_set"

        def download(self):
            return str(run / "perturbation_set")

    class Api:
        def artifact(self, name):
            if "none" in name:
                raise ValueError("artifact not found")
            asked.append(name)
            return Artifact()

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(Api=Api))
    assert lr.load_perturbation_set("wandb:me/project/lamps-set:v0").ball.radius == 3.0
    assert asked == ["me/project/lamps-set:v0"]
    for name, kind, message in (
        ("wandb:me/project/lamps-set:v0", "model", "is an artifact of type perturbation_set, and a model is wanted"),
        ("wandb:me/project/none:v0", "model", "cannot be had from Weights & Biases: artifact not found"),
        ("wandb:lamps", "perturbation_set", "must be wandb:ENTITY/PROJECT/NAME:ALIAS"),
    ):
        with pytest.raises(InputError, match=message):
            at_hand(name, kind)
