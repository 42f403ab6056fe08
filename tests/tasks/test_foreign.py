"""Models from elsewhere: wrapped, imported, exported, of Hugging Face; and bad ones."""

import json

import pytest
import torch
from torch import nn

import latentrobust
from latentrobust.errors import InputError, RobustnessWarning
from latentrobust.perturbation_sets import PixelBall
from latentrobust.robustness.attacks import PGD
from latentrobust.tasks.foreign import _processor, own_model

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


class Theirs(nn.Module):
    """Logits of three-channel, standardised images of 8×8."""

    def __init__(self, classes=5):
        super().__init__()
        self.linear = nn.Linear(3 * 8 * 8, classes)

    def forward(self, x):
        return self.linear(x.flatten(1))


def theirs():
    torch.manual_seed(3)
    return Theirs()


module = theirs()


def within():
    inside = nn.Sequential()
    inside.add_module("module", Theirs())
    return inside


def not_a_model():
    return "text"


def test_images_are_resized_coloured_and_standardised_and_classes_chosen():
    x = torch.rand(4, 1, 16, 16)
    wrapped = latentrobust.wrap(module, mean=MEAN, std=STD, size=[8, 8], classes=[4, 0])
    small = nn.functional.interpolate(x, (8, 8), mode="bilinear", antialias=True)
    scaled = (small.expand(-1, 3, -1, -1) - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    torch.testing.assert_close(wrapped(x), module(scaled)[:, [4, 0]])
    plain = torch.rand(2, 3, 8, 8)
    assert torch.equal(latentrobust.wrap(module)(plain), module(plain))


def test_probabilities_become_logits_with_a_gradient():
    probabilities = nn.Sequential(module, nn.Softmax(1))
    x = torch.rand(4, 3, 8, 8)
    y = module(x).argmax(1)
    ball = PixelBall((3, 8, 8), "linf", 0.3)
    with pytest.warns(RobustnessWarning, match=r"return logits, .*outputs='probabilities'"):
        PGD(steps=1)(probabilities, ball, x, y)
    wrapped = latentrobust.wrap(probabilities, outputs="probabilities")
    torch.testing.assert_close(wrapped(x), module(x).log_softmax(1))
    found, plain = (PGD(steps=20, checks=False)(model, ball, x, y) for model in (wrapped, module))
    assert torch.equal(found.fooled, plain.fooled)


@pytest.mark.parametrize("last", [nn.Identity(), nn.LogSoftmax(1), nn.Sigmoid()])
def test_what_is_no_probability_is_not_taken_for_one(last):
    model = nn.Sequential(theirs(), last)
    with pytest.raises(InputError, match=r"outputs=probabilities, and the model returns .* these are no"):
        latentrobust.wrap(model, outputs="probabilities")(torch.rand(4, 3, 8, 8))


def test_half_precision_probabilities_are_probabilities():
    model = nn.Sequential(theirs(), nn.Softmax(1)).bfloat16()
    x = torch.rand(4, 3, 8, 8, dtype=torch.bfloat16)
    assert latentrobust.wrap(model, outputs="probabilities")(x).isfinite().all()


def test_probabilities_are_looked_at_where_there_are_numbers_to_see():
    probabilities = nn.Sequential(theirs(), nn.Softmax(1))
    x = torch.rand(4, 3, 8, 8)
    expected = latentrobust.wrap(probabilities, outputs="probabilities")(x)
    assert latentrobust.wrap(probabilities, outputs="probabilities")(x[:0]).shape == (0, 5)
    mapped = torch.func.vmap(latentrobust.wrap(probabilities, outputs="probabilities"))(x[:, None])
    torch.testing.assert_close(mapped[:, 0], expected)
    torch.testing.assert_close(
        torch.jit.trace(latentrobust.wrap(probabilities, outputs="probabilities"), x)(x), expected
    )


def test_what_cannot_be_wrapped_is_refused_and_no_standardisation_is_none():
    with pytest.raises(InputError, match="classes names a class twice"):
        latentrobust.wrap(module, classes=[1, 1, 2])
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(latentrobust.wrap(module, mean=[], std=[])(x), module(x))


@pytest.mark.parametrize("answer", ["tuple", "dict", "object"])
def test_logits_are_found_in_what_models_return(answer):
    class Returns(nn.Module):
        def forward(self, x):
            logits = module(x)
            if answer == "object":
                return type("Output", (), {"logits": logits})()
            return (logits, x) if answer == "tuple" else {"logits": logits, "loss": None}

    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(latentrobust.wrap(Returns())(x), module(x))


def test_models_by_import_path_and_file(tmp_path):
    x = torch.rand(2, 3, 8, 8)
    torch.jit.trace(module, x).save(str(tmp_path / "script.pt"))
    batch = torch.export.Dim("batch", min=1, max=64)
    torch.export.save(torch.export.export(module, (x,), dynamic_shapes=({0: batch},)), tmp_path / "program.pt2")
    torch.save(module.state_dict(), tmp_path / "weights.pth")
    sources = [
        {"source": f"{__name__}.module"},
        {"source": f"{__name__}.theirs"},
        {"source": f"{__name__}.Theirs", "arguments": {"classes": 5}, "weights": str(tmp_path / "weights.pth")},
        {"source": str(tmp_path / "script.pt")},
        {"source": str(tmp_path / "program.pt2")},
    ]
    ball = PixelBall((3, 8, 8), "linf", 0.1)
    y = module(x).argmax(1)
    worst = PGD(steps=5, checks=False)(module, ball, x, y).score
    for options in sources:
        model = own_model(**options, mean=(0.0,) * 3, std=(1.0,) * 3).eval()
        torch.testing.assert_close(model(x), module(x))
        torch.testing.assert_close(PGD(steps=5, checks=False)(model, ball, x, y).score, worst)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "nothing"}, "expected an import path"),
        ({"source": "no.such.Model"}, "cannot be imported"),
        ({"source": f"{__name__}.Nothing"}, "cannot be imported"),
        ({"source": f"{__name__}.not_a_model"}, "gives a str, not a torch.nn.Module"),
        ({"source": f"{__name__}.Theirs", "arguments": {"wrong": 1}}, "fails with the arguments"),
        ({"source": "missing.pt2"}, "no such file"),
        ({"source": "hf:nobody/nothing"}, "needs Hugging Face|cannot be loaded"),
        ({"source": f"{__name__}.module", "mean": [0.5]}, "mean and std"),
        ({"source": f"{__name__}.module", "mean": [0.5], "std": [0.0]}, "std must be positive"),
        ({"source": f"{__name__}.module", "size": [8]}, "size must be"),
        ({"source": f"{__name__}.module", "classes": []}, "classes must be places"),
    ],
)
def test_bad_models_are_refused_in_one_line(options, message):
    with pytest.raises(InputError, match=message) as caught:
        own_model(**options)
    assert "\n" not in str(caught.value)


def test_a_state_dict_is_no_model(tmp_path):
    torch.save(module.state_dict(), tmp_path / "weights.pt")
    with pytest.raises(
        InputError,
        match=r"save a state dict rather than a whole module, and name the class as model.source and the file as m",
    ):
        own_model(str(tmp_path / "weights.pt"))
    with pytest.raises(InputError, match="the model has 5 classes, and class 7 is asked for"):
        latentrobust.wrap(module, classes=[7])(torch.rand(1, 3, 8, 8))
    with pytest.raises(InputError, match="must return logits"):
        latentrobust.wrap(nn.Sequential(module, nn.Flatten(0)))(torch.rand(1, 3, 8, 8))


def test_a_hugging_face_classifier(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(
        num_channels=3, embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], num_labels=4, layer_type="basic"
    )
    theirs = transformers.ResNetForImageClassification(config).eval()
    theirs.save_pretrained(tmp_path / "hub")
    size = {"height": 16, "width": 16}
    (tmp_path / "hub" / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": MEAN, "image_std": STD, "size": size})
    )
    model = own_model(f"hf:{tmp_path / 'hub'}")
    x = torch.rand(2, 3, 16, 16)
    scaled = (x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    torch.testing.assert_close(model(x), theirs(scaled).logits)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"image_mean": MEAN, "image_std": STD, "size": 8}, {"mean": [*MEAN], "std": [*STD], "size": [8, 8]}),
        ({"do_normalize": False, "image_mean": MEAN, "image_std": STD}, {}),
        ({"do_resize": False, "size": 8}, {}),
        ({"size": {"shortest_edge": 12}, "crop_size": 8, "do_center_crop": False}, {"size": [12, 12]}),
        ({"size": {"shortest_edge": 12}, "crop_size": {"height": 8, "width": 6}}, {"size": [8, 6]}),
        ({"do_rescale": False, "do_normalize": False}, {"mean": [0.0], "std": [1 / 255]}),
        ({"rescale_factor": 1 / 127.5, "rescale_offset": True, "do_normalize": False}, {"mean": [0.5], "std": [0.5]}),
    ],
)
def test_an_image_processor_s_settings_are_followed(tmp_path, settings, expected):
    """What a processor would make of 256 levels, from images in [0, 1]."""
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    found = _processor(str(tmp_path))
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value)


def test_an_image_processor_without_settings_is_refused(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text("[1]")
    with pytest.raises(InputError, match="no table of settings"):
        _processor(str(tmp_path))


def test_weights_are_taken_out_of_somebody_s_checkpoint_and_checked(tmp_path):
    source = {"source": f"{__name__}.Theirs", "weights": tmp_path / "weights.pth"}
    torch.save({"model": {f"module.{name}": value for name, value in module.state_dict().items()}}, source["weights"])
    x = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(own_model(**source)(x), module(x))
    inside = nn.Sequential()
    inside.add_module("module", module)  # whose names begin as those of data parallelism do
    torch.save(inside.state_dict(), source["weights"])
    torch.testing.assert_close(own_model(**(source | {"source": f"{__name__}.within"}))(x), module(x))
    for changed, message in ((torch.nan, "not finite"), (1, "before they were quantised")):
        state = {name: torch.full(value.shape, changed) for name, value in module.state_dict().items()}
        torch.save(state, source["weights"])
        with pytest.raises(InputError, match=message):
            own_model(**source)


def test_what_somebody_s_module_raises_is_named(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    for name, text in (("divides", "1 / 0\n"), ("unreadable", "def f(:\n")):
        (tmp_path / f"{name}.py").write_text(text)
        with pytest.raises(
            InputError, match=f"model.source={name}.Net cannot be imported .*(ZeroDivision|Syntax)Error"
        ):
            own_model(f"{name}.Net")


def test_a_model_that_answers_with_classes_is_told_so():
    """Whole numbers cannot be resized, nor have a gradient."""
    model = latentrobust.wrap(lambda x: x[:, :, ::2, ::2].mul(3).long())
    with pytest.raises(InputError, match="must return logits, got whole numbers"):
        model(torch.rand(2, 3, 8, 8))
