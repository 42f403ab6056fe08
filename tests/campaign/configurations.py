"""Small runs that campaigns start: seconds each, over every learner, task and kind of measurement."""

COMMON = ["trainer.accelerator=cpu", "print_config=false", "callbacks.progress=null"]
EXACT_SET = ["perturbation_set.radius=0.1"]
QUALITY = [
    "evaluation.quality.settings.steps=2",
    "evaluation.quality.settings.draws=2",
    "evaluation.quality.settings.likelihood_draws=2",
    "evaluation.quality.detail=4",
]

SET = [
    "experiment=mnist/linf_fc", "data=digits", "data/perturbation=linf", "data.test_size=12", "data.batch_size=64",
    "data.validation=100", "learner.network.hidden=16", "learner.network.latent=6", "trainer.max_epochs=2", *QUALITY,
    *COMMON,
]  # fmt: skip
MODEL = [
    "experiment=mnist/pixel_linf_adversarial", "data=digits", "data/perturbation=linf", "data.test_size=12",
    "data.batch_size=64", "data.validation=100", "model=lenet5", *EXACT_SET, "training_perturbation.steps=2",
    "task.attack_examples=8", "task.validation_attack.steps=2", "trainer.max_epochs=2",
    "evaluation/robust=paper",
    "evaluation.robust.attacks.pgd.steps=2", "evaluation.robust.radii=[0.02,full]", "evaluation.robust.examples=8",
    "evaluation/certify=default", "evaluation.certify.radii=[0.05]", "evaluation.certify.n=100",
    "evaluation.certify.n0=10", "evaluation.certify.alpha=0.01", "evaluation.certify.examples=4", *COMMON,
]  # fmt: skip
FLOW = [
    "experiment=mnist/flow", "data=digits", "data.test_size=12", "data.batch_size=64", "data.validation=100",
    "learner.network.hidden=8", "learner.network.blocks=2", "learner.initialize_on=32", "trainer.max_epochs=2", *COMMON,
]  # fmt: skip
SEVERAL = [
    "experiment=demo", "data.test_size=12", "data.validation=40", "trainer.max_epochs=2",
    "trainer.check_val_every_n_epoch=1", "trainer.limit_train_batches=6", "learner.network.latent=4",
    "task.attack_examples=8", "model.width=4", *QUALITY,
    *(f"models.{name}.trainer.max_epochs=2" for name in ("standard", "augmentation", "adversarial", "smoothing")),
    "evaluation/robust=paper",
    "evaluation.robust.attacks.pgd.steps=2", "evaluation.robust.examples=8", "evaluation.certify.n=50",
    "evaluation.certify.n0=10", "evaluation.certify.alpha=0.01", "evaluation.certify.examples=4", *COMMON,
]  # fmt: skip

RUNS = {"set": SET, "model": MODEL, "flow": FLOW, "several": SEVERAL}


def evaluation(made):
    """Options of ``evaluate`` for the model that the run ``MODEL`` has left in a folder, with more to measure."""
    kept = [option for option in MODEL if option.startswith(("experiment", "data", "perturbation_set", "evaluation"))]
    longer = ["evaluation.certify.n=20000", "evaluation.certify.adaptive=false", "evaluation.certify.examples=12"]
    return [*kept, *COMMON[:2], *longer, "callbacks=evaluate", "callbacks.progress=null", "model=trained",
            f"model.path={made}"]  # fmt: skip
