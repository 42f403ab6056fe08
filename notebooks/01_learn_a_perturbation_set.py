# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Learn a perturbation set
#
# From pairs of images (an example and the same example perturbed) we learn which perturbations are possible. Here the
# perturbation is a rotation by up to 45°, so the truth is known. It takes under a minute on two CPU cores.
# `experiment=mnist/rts` does the same with all of MNIST, turned, moved and scaled, in minutes.

# %%
# %matplotlib inline
import logging
import tempfile
import warnings

warnings.filterwarnings("ignore")
logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)

import torch
from hydra import compose, initialize_config_dir
from IPython.display import display

import latentrobust
from latentrobust.configuration import CONF
from latentrobust.reporting import figures
from latentrobust.runs import train

# %% [markdown]
# ## Configure
# The same configuration tree as on the command line; every value can be overridden.

# %%
run_folder = tempfile.mkdtemp()
overrides = [
    "experiment=digits/rts",
    "data.perturbation.shift=0",
    "data.perturbation.scale=0",
    "data.test_size=32",
    "learner.network.latent=4",
    "trainer.max_epochs=16",
    "trainer.check_val_every_n_epoch=4",
    "trainer.accelerator=cpu",
    "evaluation.quality.detail=8",
    "evaluation.quality.settings.steps=20",
    "evaluation.quality.settings.likelihood_draws=16",
    "evaluation.quality.settings.own_likelihood=false",
    "callbacks.progress=null",
    "print_config=false",
    f"paths.output_dir={run_folder}",
]
with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
    cfg = compose("train", overrides)

# %% [markdown]
# ## Learn, select the radius, measure
# `train` learns the set, selects its radius on validation pairs, measures it on test pairs and writes the run's folder.

# %%
run = train(cfg)

# %% [markdown]
# ## Look
# The last row is the observed perturbation, encoded to an offset in the ball and decoded again.

# %%
pairs = run.data.first_pairs("test", 8)
display(figures.pairs_and_reconstructions(run.perturbations, pairs))

# %% [markdown]
# Random draws from the set: the same digit, turned.

# %%
display(figures.samples(run.perturbations, run.data.first_pairs("test", 4)))

# %% [markdown]
# The errors, with the error of changing nothing as a line.

# %%
display(figures.quality_bars(run.metrics))

# %% [markdown]
# ## Use it
# A stored set loads by its folder. `at` conditions it on a batch; offsets live in a ball.

# %%
perturbations = latentrobust.load_perturbation_set(run_folder)
s = perturbations.at(pairs.x)
u = s.encode(pairs.perturbed)
print("ball:", perturbations.ball)
print("norms of the encoded offsets:", [f"{size:.2f}" for size in perturbations.ball.size(u)])
print("five draws an example:", tuple(s.decode(s.sample(5)).shape))

# %% [markdown]
# A search in the ball, here for the offset that changes the images most, is one call; attacks are built on it.

# %%
from latentrobust.perturbation_sets.ascent import projected_ascent

found = projected_ascent(
    lambda v: (s.decode(v) - pairs.x).square().mean((1, 2, 3)),
    torch.zeros_like(u) + 0.01,
    perturbations.ball,
    steps=20,
    relative_step=0.1,
)
rows = {"example x": list(pairs.x), "farthest\nfound": list(s.decode(found.offsets))}
display(figures.image_rows(rows, "The largest change within the set"))
