"""Of each shipped kind of perturbation something is learned: sets come nearer to unseen ones than the images are."""

import pytest

from latentrobust.runs import train

from ..conftest import compose_in_process

SHORT = (
    "trainer=cpu", "trainer.check_val_every_n_epoch=1000", "report=false", "evaluation/quality=quick",
    "evaluation.quality.settings.steps=10", "evaluation.quality.settings.likelihood_draws=0",
    "evaluation.quality.settings.draws=1", "evaluation.quality.detail=0", "evaluation.quality.coverage=null",
)  # fmt: skip
SCENES = ("data.source.height=16", "data.source.width=24", "learner.network.image_shape=[3,16,24]")


@pytest.mark.parametrize(
    ("experiment", "share"),
    [
        pytest.param(["experiment=digits/rts", "trainer.max_epochs=4"], 0.1, id="rotation-translation-scale"),
        pytest.param(  # noise has as many directions as pixels
            [
                "experiment=mnist/linf_fc", "data=digits", "trainer.max_epochs=20", "data.batch_size=64",
                "learner.network.hidden=256", "learner.optimizer.lr=2e-3",
            ],
            0.95,
            id="noise",
        ),
        pytest.param(
            [
                "experiment=cifar10c/set", "size=small", "trainer.max_epochs=4", "data.train_size=200",
                "data.validation=16", "data.kinds=[fog,contrast,brightness]", "data.test_size=16",
            ],
            0.5,
            id="corruptions",
        ),
        pytest.param(
            [
                "experiment=multi_illumination/set", "size=small", "learner/network=structured",
                "trainer.max_epochs=40",
                "data.source.train=24", "data.source.validation=4", "data.source.test=4", "data.batch_size=12", *SCENES,
            ],
            0.5,
            id="lights",
        ),
    ],
)  # fmt: skip
def test_learning_beats_no_change(tmp_path, experiment, share):
    metrics = train(compose_in_process("train", *experiment, *SHORT, f"paths.output_dir={tmp_path}/run")).metrics
    assert metrics["quality/pgd_ae"] < share * metrics["quality/no_change"]
    assert metrics["quality/no_change"] > 0.005
