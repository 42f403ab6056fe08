"""Every configuration composes, resolves, and builds what it names."""

import re

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf, open_dict
from omegaconf.errors import InterpolationResolutionError

from latentrobust.configuration import CONF, as_measured, check_from, resolved, stored
from latentrobust.data.images.base import Images, Split
from latentrobust.data.lights.multi_illumination import mip_size
from latentrobust.errors import InputError
from latentrobust.overrides import leave_out, null_groups, parted, settle
from latentrobust.perturbation_sets import PerturbationSet, PixelBall
from latentrobust.renamed import experiment_now
from latentrobust.robustness.assessor import RobustSettings
from latentrobust.robustness.attacks import APGD, PGD, Attack, RandomSearch, latent_autoattack
from latentrobust.schedules import Moment
from latentrobust.tasks.quality import QualityTest
from latentrobust.values import check_values
from latentrobust.variants import check_reaches_a_model, variants

EXPERIMENTS = sorted(str(f.relative_to(CONF / "experiment").with_suffix("")) for f in CONF.glob("experiment/**/*.yaml"))


def _text(experiment):
    """An experiment's file, and those it is built on."""
    text = (CONF / "experiment" / f"{experiment}.yaml").read_text()
    return text + "".join(_text(name) for name in re.findall(r"/experiment/([\w/]+)", text))


def _image_shapes(cfg):
    """What the data's images may look like."""
    source = cfg.data.source
    if "level" in source:
        return [(3, *mip_size(source.level))]
    if "supersample" in source:
        return [(3, source.height, source.width)]
    side = cfg.data.get("canvas") or 32
    return [(1, side, side), (3, side, side)]


def options(group):
    return sorted(file.stem for file in (CONF / group).glob("*.yaml"))


METHODS = sorted(str(f.relative_to(CONF / "method").with_suffix("")) for f in CONF.glob("method/**/*.yaml"))
TWINS = sorted(str(f.parent.relative_to(CONF / "size")) for f in CONF.glob("size/*/**/small.yaml"))
SETS = [name for name in EXPERIMENTS if "learner: null" not in _text(name)]
MODELS = [name for name in EXPERIMENTS if name not in SETS or name == "demo"]
# Rows of tables beside what an experiment is alone: every method somewhere, every method that takes other values there.
ROWS = [(name,) for name in MODELS]
ROWS += [("mnist/model/paper", f"method={method}") for method in METHODS if not method.startswith("table_8")]
ROWS += [("cifar10/model", f"method={method}") for method in METHODS if method.startswith("table_8")]
ROWS += [
    (experiment, f"size={size}", f"method={method}")
    for experiment, size, method in (
        str(f.relative_to(CONF / "recipe").with_suffix("")).rsplit("/", 2) for f in CONF.glob("recipe/**/*.yaml")
    )
]
ROWS += [("cifar10/model", "regime=low_data", "method=cutout"), ("cifar10c/model", "size=small", "method=augmix")]
SIZED = [(name,) for name in SETS] + [(name, "size=small") for name in TWINS if name in SETS]
OWN = {"pairs/model": ["data.root=y"]}


def name_of(experiment, *axes):
    """What the run of a row is called."""
    axis = dict(part.split("=") for part in axes)
    if experiment.endswith("/paper"):
        family, last, _ = experiment.rsplit("/", 2)
        if family == "cifar10c":
            return f"cifar10c/paper/{'small/' if 'size' in axis else ''}cvae_centred"
        return f"{family}/paper/{axis.get('method', 'standard') if last == 'model' else last}"
    family, _, last = experiment.rpartition("/")
    if experiment.startswith("multi_illumination/") and axis.get("size") == "small":
        family = "synthetic_illumination"
    elif axis.get("size") == "small":
        family += "/small"
    if experiment.startswith(("cifar10/", "svhn/")):
        family += f"/{axis.get('regime') or ('full' if experiment.startswith('cifar10/') else 'low_data')}"
    known = {"cifar10c/set": "cvae_centred", "multi_illumination/set": "cvae" if "size" in axis else "mip5"}
    alone = {"multi_illumination/model": "any_light"}
    alone |= dict.fromkeys(("mnist/model", "pairs/model"), "data_augmentation")
    if experiment in known:
        last = known[experiment]
    elif experiment == "mnist/lenet":
        last = f"lenet/{axis.get('method', 'standard')}"
    elif last == "model":
        last = axis.get("method") or alone.get(experiment, "standard")
    return f"{family}/{last}" if family else last


@pytest.mark.parametrize("row", SIZED, ids=" ".join)
def test_experiments_that_learn_a_set_build(composed, row):
    cfg = composed("train", f"experiment={row[0]}", *row[1:], "paths.output_dir=x")
    if row[0] in (
        "multi_illumination/mip4",
        "multi_illumination/mip3",
    ):  # fine-tuning: the run to begin with is the user's to name
        with pytest.raises(InterpolationResolutionError, match=r"missing value: give from=…"):
            resolved(cfg)
        cfg["from"] = "nowhere"
        with pytest.raises(InstantiationException, match=r"no perturbation set at nowhere"):
            instantiate(cfg.learner, _convert_="all")
        cfg.learner.init_from = None
    assert resolved(cfg)["name"] == name_of(*row)
    if "unet" in cfg.learner.network.values():
        cfg.learner.network.channels = [4] * len(cfg.learner.network.channels)  # 258 million weights otherwise
    learner = instantiate(cfg.learner, _convert_="all")
    assert learner.network.image_shape in _image_shapes(cfg)
    if cfg.evaluation.get("quality") is not None:
        exact = instantiate(cfg.evaluation.quality.exact, _convert_="all")
        assert exact is None or learner.network.image_shape == exact.image_shape
        assert learner.learning_rate.schedule.epochs[-1] == learner.beta.epochs[-1] == cfg.trainer.max_epochs
    assert instantiate(cfg.data, _convert_="all").name == cfg.data.name
    assert {callback._target_ for callback in cfg.callbacks.values()}
    assert cfg.trainer.max_epochs % cfg.trainer.check_val_every_n_epoch == 0, "the last epoch would not be validated"


def test_table_4_schedules(composed):
    """The published schedules, as values of learning rate and β at some epochs."""
    expected = {
        "mnist/linf_fc": (20, {5: (5e-4, 1e-3), 10: (1e-3, 4e-3), 20: (1e-4, 1e-2)}),
        "mnist/linf_conv": (20, {15: (5e-4, 7e-3)}),
        "mnist/rts/paper": (100, {10: (2e-4, 0.01), 40: (8e-4, 0.01 + 0.99 * 0.75), 70: (4e-4, 1.0)}),
        "fashion_mnist/rts/paper": (100, {100: (0.0, 1.0)}),
    }
    for experiment, (epochs, points) in expected.items():
        cfg = composed("train", f"experiment={experiment}", "paths.output_dir=x")
        learner = instantiate(cfg.learner, _convert_="all")
        assert cfg.trainer.max_epochs == epochs
        assert cfg.data.batch_size == 128
        for epoch, (lr, beta) in points.items():
            assert learner.learning_rate.schedule(Moment(epoch)) * cfg.learner.optimizer.lr == pytest.approx(lr)
            assert learner.beta(Moment(epoch)) == pytest.approx(beta)


@pytest.mark.parametrize("row", [*SIZED, *ROWS], ids=" ".join)
def test_training_experiments_can_be_named_for_evaluation(composed, row):
    overrides = ["perturbation_set=trained", "perturbation_set.path=x", "paths.output_dir=x", *OWN.get(row[0], ())]
    if (row[0],) in ROWS:
        overrides += ["model=trained", "model.path=y"]
    cfg = composed("evaluate", f"experiment={row[0]}", *row[1:], *overrides)
    with open_dict(cfg):
        cfg.pop("learner", None)  # as evaluate does
    check_values(cfg)  # nothing of the set or the model that the experiment makes has stayed in the one that is named
    assert resolved(cfg)["perturbation_set"]["path"] == "x"
    if (row[0],) in ROWS:
        assert resolved(cfg)["model"] == {"_target_": "latentrobust.load_model", "path": "y", "network": None}


@pytest.mark.parametrize(
    ("group", "name"),
    [
        (group, name)
        for group in ("logger", "trainer", "debug", "data", "learner/network", "evaluation", "evaluation/quality")
        for name in options(group)
    ],
)
def test_every_option_composes(composed, group, name):
    needed = {
        "linf": ["data/perturbation=linf"], "scene_folder": ["data.source.folder=x"], "pairs": ["data.root=x"],
    }  # fmt: skip
    assert resolved(composed("train", f"{group}={name}", "paths.output_dir=x", *needed.get(name, [])))


TASK = [
    "task=classification",
    "model=lenet5",
    "training_perturbation=none",
    "objective=standard",
    "~learner",
    "callbacks=classification",
    "evaluation=model",
    "paths.output_dir=x",
]


STAGED = ("curriculum", "schedule")


@pytest.mark.parametrize(
    ("group", "name"),
    [
        (group, name)
        for group in ("model", "training_perturbation", "objective", "evaluation/robust", "evaluation/certify")
        for name in options(group)
    ],
)
def test_every_option_of_a_model_composes_and_builds(composed, group, name):
    path = (
        {"trained": ["model.path=x"], "own": ["model.source=y"], "auto": [""]}.get(name, []) if group == "model" else []
    )
    cfg = composed("train", *TASK, "perturbation_set=rts", f"{group}={name}", *filter(None, path))
    assert resolved(cfg)
    if not path and (group, name) != ("model", "wrn_28_10"):  # 36 million weights; built in the golden test, smaller
        for part in ("model", "training_perturbation", "objective"):
            instantiate(cfg[part], _convert_="all")
        for part in ("robust", "certify"):
            instantiate(cfg.evaluation.get(part), _convert_="all")


@pytest.mark.parametrize("name", [name for name in options("training_perturbation") if name not in STAGED])
def test_a_curriculum_grows_any_perturbation(composed, name):
    """As its help says: none of the options of its own adversary stay behind."""
    options = ["training_perturbation=curriculum", f"training_perturbation@training_perturbation.perturbation={name}"]
    cfg = composed("train", *TASK, "perturbation_set=rts", *options)
    instantiate(cfg.training_perturbation, _convert_="all")


@pytest.mark.parametrize("name", options("attack"))
def test_every_attack_builds(composed, name):
    cfg = composed("train", *TASK, "perturbation_set=rts", f"attack@task.validation_attack={name}")
    assert isinstance(instantiate(cfg.task.validation_attack, _convert_="all"), Attack)


@pytest.mark.parametrize("name", ["pgd", "apgd", "random_search", "latent_autoattack"])
def test_attacks_have_the_same_defaults_in_python_and_on_the_command_line(composed, name):
    cfg = composed("evaluate", f"+attack@mine={name}", "paths.output_dir=x")
    in_python = {"pgd": PGD, "apgd": APGD, "random_search": RandomSearch, "latent_autoattack": latent_autoattack}
    assert instantiate(cfg.mine, _convert_="all") == in_python[name]()


@pytest.mark.parametrize("row", ROWS, ids=" ".join)
def test_experiments_that_train_models_build(composed, row):
    path = ["from=x"] if not set(row) & {"demo", "synthetic_illumination/chain"} else []
    cfg = composed("train", f"experiment={row[0]}", *row[1:], "paths.output_dir=x", *path, *OWN.get(row[0], ()))
    assert resolved(cfg)["name"] == name_of(*row)
    if row[0] == "pairs/model":
        return  # whose sizes are those of the data
    for _, variant in variants(cfg):
        colours = 1 if cfg.data.name in ("digits", "mnist", "fashion_mnist") else 3
        shape = next(shape for shape in _image_shapes(cfg) if shape[0] == colours)
        if variant.model.name == "segmentation_unet":
            variant.model.channels = [4, 4, 4]
        assert variant.trainer.max_epochs % variant.trainer.check_val_every_n_epoch == 0
        with torch.device("meta"):  # shapes alone: nothing of 36 million weights is drawn
            task = instantiate(variant.task, perturbations=PixelBall(shape), _convert_="all").eval()
        classes = (
            (36, *shape[1:])
            if variant.model.name == "segmentation_unet"
            else (100 if cfg.data.name == "cifar100" else 10,)
        )
        assert task.model(torch.zeros(1, *shape, device="meta")).shape == (1, *classes)
        if variant.callbacks.best is not None:
            assert variant.callbacks.best.monitor == f"val/accuracy/{variant.task.select_on}"
            assert task.learning_rate.schedule.epochs[-1] == variant.trainer.max_epochs
        for part in ("training_perturbation", "objective"):
            instantiate(variant[part], _convert_="all")


def test_variants_replace_perturbations_and_merge_the_rest(composed):
    cfg = composed("train", "experiment=demo", "paths.output_dir=x", "trainer.log_every_n_steps=7")
    found = dict(variants(cfg))
    assert list(found) == ["standard", "augmentation", "adversarial", "smoothing"]
    kinds = [v.training_perturbation._target_.rsplit(".", 1)[1] for v in found.values()]
    assert kinds == ["Unperturbed", "PairedData", "Curriculum", "Gaussian"]
    assert "ratio" not in found["standard"].training_perturbation
    assert all(v.trainer.log_every_n_steps == 7 for v in found.values())
    assert found["standard"].callbacks.best.dirpath == "x/models/standard/checkpoints"
    cfg = composed("train", "experiment=demo", "paths.output_dir=x", "+models.standard.data.batch_size=3")
    with pytest.raises(InputError, match=r"models\.standard may change .* not data"):
        list(variants(cfg))


def test_a_schedule_that_is_chosen_is_that_of_its_file(composed):
    said = ["scheduler@task.scheduler=constant", "optimizer@task.optimizer=sgd", "task.optimizer.momentum=0.5"]
    cfg = composed("train", "experiment=mnist/model", "from=x", "paths.output_dir=x", *said)
    assert (list(cfg.task.scheduler["values"]), list(cfg.task.scheduler.epochs)) == ([1], [0])
    assert (cfg.task.optimizer.lr, cfg.task.optimizer.momentum) == (0.1, 0.5)
    said = ["scheduler@task.scheduler=exponential", "task.scheduler.steps=null", "task.scheduler.epochs=10",
            "optimizer@task.optimizer=sgd", "~task.optimizer.momentum", "task.optimizer={lr: 0.5}"]  # fmt: skip
    cfg = composed("train", "experiment=mnist/lenet", "paths.output_dir=x", *said)
    assert (cfg.task.scheduler.rate, cfg.task.scheduler.steps, cfg.task.scheduler.epochs) == (0.9, None, 10)
    assert (cfg.task.optimizer.lr, "momentum" in cfg.task.optimizer) == (0.5, False)
    said = ["scheduler@learner.scheduler=warm_up", "learner.scheduler.images=7"]
    cfg = composed("train", "experiment=digits/rts", "paths.output_dir=x", *said)
    assert OmegaConf.to_container(cfg.learner.scheduler) == {"_target_": "latentrobust.schedules.WarmUp", "images": 7}


def test_a_network_that_is_chosen_is_that_of_its_file_for_the_experiment_s_images(composed):
    said = ["learner/network=resnet", "learner.network.blocks=2"]
    cfg = composed("train", "experiment=cifar10c/set", "paths.output_dir=x", *said)
    network = OmegaConf.to_container(cfg.learner.network)
    assert {"warps", "field"}.isdisjoint(network)
    assert (network["latent"], network["blocks"]) == (512, 2)
    said = ["learner/network=warp"]
    cfg = composed("train", "experiment=multi_illumination/mip4", "paths.output_dir=x", *said)
    assert (cfg.learner.network.name, cfg.learner.network.image_shape) == ("structured", [3, 250, 375])
    assert (cfg.learner.network.latent, "channels" in cfg.learner.network) == (8, False)


def test_attacks_that_are_chosen_are_those_of_their_file(composed):
    said = ["evaluation/robust=paper", "evaluation.robust.attacks.pgd.restarts=2",
            "+attack@evaluation.robust.attacks.more=apgd"]  # fmt: skip
    cfg = composed("train", "experiment=demo", "paths.output_dir=x", *said)
    robust = cfg.evaluation.robust
    assert (robust.attacks.pgd.steps, robust.attacks.pgd.relative_step, robust.attacks.pgd.restarts) == (50, 0.05, 2)
    assert set(robust.attacks) == {"pgd", "more"}
    assert (robust.examples, list(robust.radii)) == (96, [0, "p50", "p75", "full"])
    said = ["evaluation/robust=autoattack"]
    cfg = composed("train", "experiment=demo", "paths.output_dir=x", *said)
    assert set(cfg.evaluation.robust.attacks) == {"pgd", "latent_autoattack"}
    whole = composed("train", "experiment=mnist/model", "from=x", "evaluation/robust=autoattack").evaluation.robust
    assert cfg.evaluation.robust.attacks == whole.attacks


def test_what_a_model_s_entry_refers_to_is_stored_as_that_model_s(composed):
    kept = stored(composed("train", "experiment=demo", "paths.output_dir=x"))["models"]["standard"]["callbacks"]["best"]
    assert (kept["monitor"], kept["dirpath"]) == ("val/accuracy/clean", "x/models/standard/checkpoints")


def test_callbacks_of_the_command_line_are_every_model_s(composed):
    said = ["callbacks.pictures=null", "callbacks.last.every_n_epochs=3", "callbacks.best.monitor=val/kl",
            "models.smoothing.callbacks.last.every_n_epochs=5", "~callbacks.progress"]  # fmt: skip
    cfg = composed("train", "experiment=demo", "paths.output_dir=x", *said)
    found = {name: variant.callbacks for name, variant in variants(cfg)}
    assert all(callbacks.pictures is None and callbacks.progress is None for callbacks in found.values())
    every = {name: callbacks.last.every_n_epochs for name, callbacks in found.items()}
    assert every == {"standard": 3, "augmentation": 3, "adversarial": 3, "smoothing": 5}
    assert all(callbacks.best.monitor.startswith("val/accuracy/") for callbacks in found.values())  # models log no KL
    assert stored(cfg)["models"]["standard"]["callbacks"]["pictures"] is None


def test_callbacks_that_are_chosen_come_beside_those_of_a_model(composed):
    said = ["callbacks=classification_average", "callbacks.average.decay=0.5"]
    cfg = composed("train", "experiment=demo", "~learner", "from=x", "paths.output_dir=x", *said)
    for _, variant in variants(cfg):
        assert variant.callbacks.average.decay == 0.5
        assert variant.callbacks.best.monitor == f"val/accuracy/{variant.task.select_on}"


def test_callbacks_of_one_model_and_of_the_set_stay_theirs(composed):
    said = ["++callbacks.best={save_top_k: 2, monitor: val/kl}", "callbacks.pictures=null",
            "models.smoothing.callbacks.pictures.draws=2", "models.standard.callbacks.last=null",
            "callbacks.last.every_n_epochs=3"]  # fmt: skip
    cfg = composed("train", "experiment=demo", "paths.output_dir=x", *said)
    found = {name: variant.callbacks for name, variant in variants(cfg)}
    assert all(callbacks.best.save_top_k == 2 for callbacks in found.values())
    assert all(callbacks.best.monitor.startswith("val/accuracy/") for callbacks in found.values())
    assert found["smoothing"].pictures.draws == 2
    assert found["adversarial"].pictures is None
    assert (found["standard"]["last"], found["adversarial"]["last"].every_n_epochs) == (None, 3)


@pytest.mark.parametrize("name", ["rts", "pixel_ball"])
def test_exact_sets_can_be_evaluated(composed, name):
    cfg = composed("evaluate", f"perturbation_set={name}", "paths.output_dir=x")
    assert isinstance(instantiate(cfg.perturbation_set, _convert_="all"), PerturbationSet)


def test_evaluation_builds_its_test(composed, small_set):
    cfg = composed("train", "paths.output_dir=x")
    test = instantiate(cfg.evaluation.quality, perturbations=small_set, _convert_="all")
    assert isinstance(test, QualityTest)
    assert test.settings.steps == 50
    assert test.settings.relative_step == 0.05
    assert test.settings.draws == 5


def test_optimizers_and_schedulers_can_be_exchanged(composed):
    overrides = ["optimizer@learner.optimizer=adamw", "scheduler@learner.scheduler=constant", "paths.output_dir=x"]
    cfg = composed("train", *overrides)
    assert OmegaConf.to_container(cfg.learner.optimizer)["_target_"].endswith("AdamW")
    assert instantiate(cfg.learner.scheduler)(Moment(50.0)) == 1.0


# Rows of tables 1, 2, 6 and 8 of Yüksel et al. that have to be of the same part of the same data.
SAME_PART = {
    "table 1, 5 %": (2500, ["cifar10/model", "cifar10/flow", "cifar10/vae_gan"], ["regime=low_data"]),
    "table 1, all": (50_000, ["cifar10/model", "cifar10/flow", "cifar10/vae_gan"], []),
    "table 2": (5000, ["cifar100/model"], []),
    "table 6": (2500, ["svhn/model", "svhn/flow"], []),
}


@pytest.mark.parametrize("table", list(SAME_PART))
def test_rows_of_a_table_train_on_the_same_examples(composed, table):
    size, names, axes = SAME_PART[table]
    methods = ["standard", "adversarial_la", "cutout"]
    rows = [[name, *axes] for name in names if name != "cifar10/model"]
    rows += [[name, *axes, f"method={method}"] for name in names if name.endswith("/model") for method in methods]
    labels = torch.arange(50_000) % (100 if table == "table 2" else 10)
    split = Split(torch.zeros(50_000, 3, 1, 1, dtype=torch.uint8), labels)
    found = {}
    for row in rows:
        cfg = composed("train", f"experiment={row[0]}", *row[1:], "paths.output_dir=x", "from=x")
        data = instantiate(cfg.data, source=lambda: Images(split, split), _convert_="all")
        data.setup()
        found[" ".join(row)] = data.rows["train"]
    assert len(found) >= 3
    first = next(iter(found.values()))
    assert len(first) == size
    for name, rows in found.items():
        assert torch.equal(rows, first), name


OLD = {
    "cifar10c/small/smoothing_p75": "cifar10c/small/smoothing",
    "cifar10c/cvae_perturbed_only": "cifar10c/paper/cvae_perturbed_only",
    "mnist/rts_5": "mnist/paper/rts",
    "mnist/rts_adversarial": "mnist/paper/adversarial",
    "mnist/adversarial_la": "mnist/lenet/adversarial_la",
    "mnist/warp/smoothing": "mnist/smooth_adversarial",
    "mnist/warp/rts": "mnist/rts",
    "mnist/warp/model": "mnist/data_augmentation",
    "fashion_mnist/standard": "fashion_mnist/standard",
    "cifar10/no_augmentation/flow": "cifar10/low_data/flow",
    "cifar10/full/mixup": "cifar10/full/mixup",
    "cifar10/table_8/adversarial_2_then_1": "cifar10/full/table_8/adversarial_then_weaker",
    "cifar100/randomized_l2_20": "cifar100/randomized_la",
    "svhn/randomized_la_of_cifar10": "svhn/low_data/randomized_la",
    "multi_illumination/mip5": "multi_illumination/mip5",
    "synthetic_illumination/cvae": "synthetic_illumination/cvae",
    "synthetic_illumination/fixed_light": "synthetic_illumination/standard",
}


@pytest.mark.parametrize("old", OLD)
def test_what_stands_for_an_old_name_composes(composed, old):
    overrides = experiment_now(old).split()
    assert resolved(composed("train", *overrides, "from=x", "paths.output_dir=x"))["name"] == OLD[old]


def test_names_that_never_were_have_no_successor():
    for name in ("cifar10c/nothing", "nothing/standard", "mnist/warp/curriculum", "cifar10/flow", "small/rts"):
        assert experiment_now(name) is None, name


def test_rows_take_their_published_values(composed):
    """One of each kind of value that a row has beside its method: by the data, by its size, by the part of the data."""

    def row(*overrides):
        return composed("train", *overrides, "from=x", "paths.output_dir=x")

    for experiment, radius, norm, steps in [
        ("cifar10", 1.0, "l2", 3), ("cifar100", 1.0, "l2", 3), ("svhn", 0.5, "l2", 2),
        ("fashion_mnist", 0.05, "linf", 10),
    ]:  # fmt: skip
        found = row(f"experiment={experiment}/model", "method=adversarial_la").training_perturbation
        assert (found.radius, found.norm, found.steps) == (radius, norm, steps)
    full = row("experiment=cifar10c/model", "method=smoothing")
    small = row("experiment=cifar10c/model", "method=smoothing", "size=small", "evaluation.certify.target=p25")
    assert (full.evaluation.certify.n, full.evaluation.certify.examples, full.model.depth) == (10000, 500, 28)
    assert (small.evaluation.certify.n, small.evaluation.certify.examples, small.model.depth) == (1000, 20, 10)
    assert (small.training_perturbation.target, small.training_perturbation.n) == ("p25", 1000)
    assert (full.data.name, small.data.name, small.trainer.max_epochs) == ("cifar10c", "photos", 12)
    assert row("experiment=multi_illumination/model", "method=standard").data.train_light == 0
    assert row("experiment=multi_illumination/model", "method=adversarial").data.train_light is None
    assert row("experiment=cifar10/model", "regime=low_data").data.train_fraction == 0.05


def test_a_size_that_there_is_not_is_refused(composed):
    with pytest.raises(InputError, match=r"size=small: this has no small twin; there are experiment=cifar10c/model, "):
        resolved(composed("train", "experiment=mnist/rts/paper", "size=small", "paths.output_dir=x"))


def test_a_file_of_ones_own_is_always_read(tmp_path):
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / "default.yaml").write_text("# @package _global_\ntrainer: {accelerator: cpu}\n")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", [f"hydra.searchpath=[file://{tmp_path}]", "paths.output_dir=x"])
    assert cfg.trainer.accelerator == "cpu"


@pytest.mark.parametrize(
    ("experiment", "mean", "std"),
    [
        ("cifar10/model", [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]),
        ("cifar100/model", [0.5071, 0.4867, 0.4408], [0.2675, 0.2565, 0.2761]),
        ("svhn/model", [0.4376821, 0.4437697, 0.47280442], [0.19803012, 0.20101562, 0.19703614]),
        ("mnist/lenet", [0.1307], [0.3081]),
        ("cifar10c/model", [0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010]),
    ],
)
def test_classifiers_see_the_constants_of_their_paper(composed, experiment, mean, std):
    """Of `okyksl/flow-lp`'s dataset files, and of `locuslab/perturbation_learning`'s ``CIFAR10Normalize``."""
    cfg = composed("train", f"experiment={experiment}", "paths.output_dir=x")
    assert list(cfg.model.mean) == mean
    assert list(cfg.model.std) == std


def test_published_values_that_had_been_left_out(composed):
    lenet = composed("train", "experiment=mnist/lenet", "paths.output_dir=x")
    assert lenet.data.batch_size == 32
    for name in ("svhn/model", "svhn/flow"):
        cfg = composed("train", f"experiment={name}", "paths.output_dir=x")
        augmentation = cfg.task.augmentation.before if cfg.get("task") else cfg.learner.augmentation
        assert augmentation.translation.share == 0.1
    glow = composed("train", "experiment=cifar10/flow", "paths.output_dir=x")
    assert (glow.learner.optimizer.weight_decay, glow.learner.optimizer.lr) == (5e-5, 5e-4)
    assert (
        composed("train", "experiment=mnist/model/paper", "method=adversarial", "from=x").training_perturbation.start
        == "zero"
    )


def test_python_attacks_by_default_as_the_command_does(composed):
    """And both with more than PGD."""
    cfg = composed("evaluate", "data=digits", "perturbation_set=rts", "evaluation=model", "paths.output_dir=x")
    ours, theirs = RobustSettings(), instantiate(cfg.evaluation.robust, _convert_="all")
    assert not ours.only_pgd
    assert {name: repr(attack) for name, attack in ours.attacks.items()} == {
        name: repr(attack) for name, attack in theirs.attacks.items()
    }
    paper = composed("evaluate", "data=digits", "perturbation_set=rts", "evaluation/robust=paper", "paths.output_dir=x")
    assert instantiate(paper.evaluation.robust, _convert_="all").only_pgd


def test_a_key_that_nothing_reads_is_refused(composed):
    for added in ("+resume=true", "++max_steps=1"):
        cfg = composed("train", "experiment=digits/rts", added)
        cfg.overrides = [added]
        with pytest.raises(InputError, match=f"there is no option {added.strip('+').partition('=')[0]}"):
            check_from(cfg)
    for given in (["+rate=0.01", "learner.optimizer.lr=${rate}"], ["+sweep=figure_2"]):
        cfg = composed("train", "experiment=digits/rts", *given)
        cfg.overrides = given
        check_from(cfg)


def test_a_run_to_build_on_is_refused_where_nothing_does_but_in_a_sweep(composed):
    alone = composed("train", "experiment=fashion_mnist/model", "method=standard", "from=outputs/flow")
    with pytest.raises(InputError, match="nothing here builds on a run"):
        check_from(alone)
    with pytest.raises(InputError, match="nothing here builds on a run"):
        check_from(alone, alone)  # all jobs of a sweep
    needs = composed("train", "experiment=fashion_mnist/model", "method=adversarial_la", "from=outputs/flow")
    check_from(needs)
    check_from(alone, needs)
    alone.sweep = "figure_2"  # whose other methods need it
    check_from(alone)


@pytest.mark.parametrize(
    ("others", "left_out"),
    [
        ([], {"quality", "density", "robust", "certify"}),
        (["evaluation/robust=paper", "+evaluation.certify.n=5"], {"quality", "density"}),
        (["evaluation=model"], {"quality", "density", "certify"}),
        (["evaluation=all"], {"density"}),
    ],
)
def test_what_an_evaluation_leaves_out_is_left_out_whatever_the_experiment_chose(others, left_out):
    arguments = ["experiment=demo", "evaluation=accuracy_only", *others]
    cfg = OmegaConf.create({"overrides": [*arguments, "seed=3"]})
    leave_out(cfg, null_groups(*parted(arguments)))
    assert list(cfg.overrides)[-len(arguments) - 1 :] == [*arguments, "seed=3"]  # which name the run
    found = {key: f"evaluation/{key.partition('.')[2]}=null" for key in (f"evaluation.{part}" for part in left_out)}
    assert null_groups(*parted(arguments)) == found


@pytest.mark.parametrize("group", ["learner/network", "evaluation/robust"])
def test_what_is_chosen_is_what_hydra_makes_of_its_file(group):
    """Where nothing else writes into its place, as in the command without an experiment."""
    place = group.replace("/", ".")
    files = sorted((CONF / group).rglob("*.yaml"))
    assert files
    for file in files:
        said = [f"{group}={file.relative_to(CONF / group).with_suffix('').as_posix()}"]
        with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
            taken = compose("train", ["learner=cvae", "evaluation=all", *said])
            wanted = OmegaConf.to_container(OmegaConf.select(taken, place), resolve=False)
            settle(taken, said, [])
        found = OmegaConf.to_container(OmegaConf.select(taken, place), resolve=False)
        assert found == wanted, said
        assert "_target_" in found


def test_a_network_of_an_experiment_is_another_s_too(composed):
    cfg = composed("train", "experiment=cifar10c/set", "paths.output_dir=x", "learner/network=cifar10c/small")
    assert cfg.learner.network == {
        "_target_": "latentrobust.networks.cvae.build", "name": "resnet", "image_shape": [3, 32, 32],
        "latent": 64, "wide": 16, "narrow": 8, "blocks": 2,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("said", "place", "value"),
    [
        (["experiment=demo", "evaluation/robust=default", "evaluation.robust.attacks={pgd: {steps: 7}}"],
         "evaluation.robust.attacks.pgd.steps", 7),
        (["learner/network=resnet", "learner={network: {blocks: 3}}"], "learner.network.blocks", 3),
        (["learner/network=resnet", "learner={network: {blocks: 3}}", "learner.network.blocks=5"],
         "learner.network.blocks", 5),
        (["experiment=demo", "scheduler@task.scheduler='constant'"], "task.scheduler.values", [1]),
        (["logger=null", "logger=csv"], "logger.csv._target_", "latentrobust.reporting.loggers.KeptCSVLogger"),
        (["logger=csv", "logger=null"], "logger", None),
        (["+logger=null"], "logger", None),
        (["logger=NULL"], "logger", None),
        (["logger=none"], "logger", {}),
        (["evaluation=null", "evaluation=set"], "evaluation.quality._target_",
         "latentrobust.tasks.quality.QualityTest"),
        (["evaluation=set", "evaluation=null"], "evaluation", None),
        (["learner=null", "learner/network=null"], "learner", None),
        (["experiment=demo", "task=null", "scheduler@task.scheduler=null"], "task", None),
    ],
)  # fmt: skip
def test_the_last_word_about_a_group_counts(composed, said, place, value):
    cfg = composed("train", "paths.output_dir=x", *said)
    assert OmegaConf.select(cfg, place) == value


def test_files_of_the_user_s_own_may_be_chosen(composed, tmp_path):
    """From wherever Hydra finds them, in a package that they name, and with less than ours have."""
    (tmp_path / "optimizer").mkdir()
    (tmp_path / "optimizer" / "mine.yaml").write_text("_target_: torch.optim.Rprop\n_partial_: true\n")
    (tmp_path / "learner" / "network" / "sub").mkdir(parents=True)
    (tmp_path / "learner" / "network" / "sub" / "mine.yaml").write_text(
        "# @package learner.network\ndefaults: [/learner/network/mnist_fc@_here_, _self_]\nhidden: 7\n"
    )
    there = f"hydra.searchpath=[file://{tmp_path}]"
    cfg = composed("train", there, "experiment=demo", "optimizer@task.optimizer=mine", "paths.output_dir=x")
    assert cfg.task.optimizer._target_ == "torch.optim.Rprop"
    cfg = composed("train", there, "learner=cvae", "learner/network=sub/mine", "paths.output_dir=x")
    assert (cfg.learner.network.name, cfg.learner.network.hidden) == ("mnist_fc", 7)


@pytest.mark.parametrize(
    ("said", "place", "value"),
    [
        (["experiment=digits/rts", "trainer=debug"], "trainer.max_epochs", 2),
        (["experiment=digits/rts", "trainer=debug", "trainer.max_epochs=3"], "trainer.max_epochs", 3),
        (["experiment=digits/rts", "trainer=cpu"], "trainer.max_epochs", 24),
        (["experiment=cifar10c/set", "learner=demo"], "learner.network.residual", 0),
        (["experiment=cifar10c/set", "learner=demo"], "learner.network.image_shape", [3, 32, 32]),
        (["experiment=cifar10c/set", "learner=flow"], "learner._target_", "latentrobust.learners.flow.FlowLearner"),
        (["experiment=cifar10c/set", "learner=flow", "learner/network=glow"], "learner.network.name", "glow"),
        (["experiment=cifar10c/set", "learner/network=glow", "learner=flow"], "learner.network.name", "glow"),
        (["experiment=cifar10c/set", "learner=demo", "learner.radius=p50"], "learner.radius", "p50"),
        (["experiment=mnist/model", "from=x", "method=adversarial_la", "training_perturbation=adversarial"],
         "training_perturbation.radius", None),
        (["experiment=mnist/model", "from=x", "method=data_augmentation", "training_perturbation=curriculum",
          "training_perturbation@training_perturbation.perturbation=n_fgsm",
          "training_perturbation.perturbation.radius=p50"],
         "training_perturbation.perturbation.radius", "p50"),
        (["experiment=mnist/model", "from=x", "method=data_augmentation", "training_perturbation=curriculum",
          "training_perturbation@training_perturbation.perturbation=n_fgsm"],
         "training_perturbation.perturbation._target_", "latentrobust.robustness.training.FastAdversarial"),
        (["experiment=cifar10c/model", "size=small", "from=x", "method=data_augmentation",
          "evaluation/accuracy=default"], "evaluation.accuracy.held_out", None),
    ],
)  # fmt: skip
def test_what_the_command_line_chooses_is_that_of_its_file(composed, said, place, value):
    """Whatever an experiment has written for what it chooses itself."""
    assert OmegaConf.select(composed("train", "paths.output_dir=x", *said), place) == value


@pytest.mark.parametrize(
    ("said", "told"), [("evaluation=robust/paper", "evaluation/robust=paper"), ("data=perturbation/rts", "data/pert")]
)
def test_a_part_of_a_group_that_is_taken_for_the_group_is_told_so(composed, said, told):
    with pytest.raises(InputError, match=f"there is no {said}: did you mean {told}"):
        composed("train", said, "paths.output_dir=x")


def test_options_in_folders_are_no_parts(composed):
    cfg = composed("train", "experiment=cifar10c/set", "data=cifar10c/small", "paths.output_dir=x")
    assert cfg.data.name == composed("train", "experiment=cifar10c/set", "size=small", "paths.output_dir=x").data.name


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("method=adversarial", "is of one model, and this run has several"),
        ("training_perturbation=adversarial", "would do nothing: each of the models"),
        ("task.select_on=robust", "models.standard.task.select_on=robust"),
    ],
)
def test_what_would_reach_none_of_several_models_is_refused(composed, said, told):
    cfg = composed("train", "experiment=demo", said, "paths.output_dir=x")
    with pytest.raises(InputError, match=re.escape(told)):
        check_reaches_a_model(cfg)


def test_debugging_is_of_each_model(composed):
    cfg = composed("train", "experiment=demo", "debug=limit", "paths.output_dir=x")
    assert {variant.trainer.max_epochs for _, variant in variants(cfg)} == {2}
    cfg = composed("train", "experiment=demo", "debug=limit", "models.smoothing.trainer.max_epochs=3",
                   "paths.output_dir=x")  # fmt: skip
    assert {name: variant.trainer.max_epochs for name, variant in variants(cfg)}["smoothing"] == 3


def test_to_measure_nothing_is_refused(composed):
    cfg = composed("evaluate", "perturbation_set=trained", "perturbation_set.path=x", "evaluation=null")
    as_measured(cfg)
    with pytest.raises(InputError, match="evaluation=null leaves nothing to work with"):
        check_values(cfg)


def test_references_of_the_command_line_stay_references(composed):
    """Each model has epochs of its own."""
    said = ["scheduler@task.scheduler=piecewise_linear", "task.scheduler.stretch_to=${trainer.max_epochs}"]
    cfg = composed("train", "experiment=demo", "paths.output_dir=x", *said)
    epochs = {name: variant.task.scheduler.stretch_to for name, variant in variants(cfg)}
    assert (epochs["standard"], epochs["smoothing"]) == (12, 32)
