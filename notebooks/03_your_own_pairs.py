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
# # Your own pairs
#
# From pairs of images to a perturbation set, and to what it says about a model. The pairs are made here from
# photographs: patches, and the same patches darker, lighter and blurred. Replace the first cell by your own folder or
# arrays; nothing below it changes. It takes about a minute on two CPU cores, so the set is a rough one.

# %%
# %matplotlib inline
import logging
import tempfile
import warnings
from pathlib import Path

warnings.filterwarnings("ignore")
logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)

import numpy as np
import torch
from IPython.display import Image as Picture
from IPython.display import Markdown, display
from PIL import Image, ImageFilter
from torch import nn

import latentrobust as lr
from latentrobust.data.images import photos
from latentrobust.data.pairs.inspection import inspect, picture
from latentrobust.reporting import figures
from latentrobust.robustness.attacks import PGD

# %% [markdown]
# ## Bring pairs
# A folder per group (here: per patch) with an image per variant, in a folder per class (here: which photograph).

# %%
folder = Path(tempfile.mkdtemp())
patches = photos(side=24, train=90, test=2).train
for number, (patch, label) in enumerate(zip(patches.images.permute(0, 2, 3, 1).numpy(), patches.labels, strict=True)):
    group = folder / f"photo{int(label) % 5}" / f"patch{number}"
    group.mkdir(parents=True)
    original = Image.fromarray(patch)
    original.save(group / "original.png")
    for gamma in (0.5, 0.7, 1.5, 2.0):
        Image.fromarray(((patch / 255) ** gamma * 255).astype(np.uint8)).save(group / f"gamma_{gamma}.png")
    original.filter(ImageFilter.GaussianBlur(1)).save(group / "blur.png")

# %% [markdown]
# ## Look before you learn
# The same as `python -m latentrobust.data inspect FOLDER --original original --label parent`.

# %%
found = inspect(folder, original="original", label="parent", cache=tempfile.mkdtemp())
print("\n".join(line for line in found.lines[1:]))
pictured = Path(tempfile.mkdtemp()) / "pairs.png"
picture(found.pairs, pictured)
display(Picture(str(pictured), width=700))

# %% [markdown]
# ## Learn a set
# The radius is the smallest that contains 90 % of the validation pairs.

# %%
pairs = lr.read_pairs(folder, original="original", label="parent", cache=tempfile.mkdtemp())
s = lr.learn(
    pairs,
    epochs=10,
    batch_size=32,
    device="cpu",
    progress=False,
    overrides=[
        "learner.radius='coverage=0.9'",
        "learner.optimizer.lr=2e-3",
        "trainer.check_val_every_n_epoch=4",
        "evaluation.quality.settings.likelihood_draws=0",
        "evaluation.quality.settings.own_likelihood=false",
        "evaluation.quality.settings.steps=20",
        "evaluation.quality.detail=0",
    ],
)
print(s.ball)

# %% [markdown]
# What the radius means: the share of test pairs, of patches that nothing was learned from, within δ of the set. The
# curve is of the validation pairs, on which the radius was chosen, so it may be a little kinder than the test pairs.

# %%
share, low, high = (s.quality[f"coverage/radius{end}"] for end in ("", "/low", "/high"))
print(f"contains {share:.0%} [{low:.0%}, {high:.0%}] of {s.quality['coverage/pairs']:.0f} test pairs")
print(f"nearest point {s.quality['quality/pgd_ae']:.4f}, without a set {s.quality['quality/no_change']:.4f}")
display(figures.coverage(s.coverage, {}, s.ball.radius))

# %% [markdown]
# ## Pictures of it

# %%
data = pairs.as_data()
few = data.first_pairs("test", 6)
display(figures.pairs_and_reconstructions(s, few))
display(figures.samples(s, few))

# %% [markdown]
# ## A model of yours
# Any module from images in [0, 1] to logits; `lr.wrap` puts standardisation, resizing and a mapping of classes around
# it. Here a small one, trained on the unperturbed images alone.

# %%
torch.manual_seed(0)
network = nn.Sequential(
    nn.LazyConv2d(16, 3, stride=2), nn.ReLU(), nn.LazyConv2d(32, 3, stride=2), nn.ReLU(), nn.Flatten(),
    nn.LazyLinear(data.classes),
)  # fmt: skip
network(few.x)  # takes sizes and channels from the images
model = lr.wrap(network, mean=[0.45], std=[0.25])
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
for epoch in range(10):
    for index in torch.randperm(data.count("train")).split(32):
        batch = data.pairs("train", index, epoch)
        loss = nn.functional.cross_entropy(model(batch.x), batch.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

# %%
results = lr.assess(
    model.eval(),
    data=data,
    perturbations=s,
    robust=lr.RobustSettings(attacks={"pgd": PGD(steps=20, relative_step=0.1)}, radii=["coverage=0.5", "full"]),
)
display(Markdown(results.to_markdown()))

# %% [markdown]
# The same from the command line: [docs/own_pairs.md](../docs/own_pairs.md).
