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
# # Train, attack and certify over a perturbation set
#
# Everything here takes `(model, perturbation set)` and does not know where the set came from. To be quick we write one
# down: digits turned by up to 45°. A learned set (`latentrobust.load_perturbation_set("a run's folder")`) goes in the
# same place.

# %%
# %matplotlib inline
import warnings

warnings.filterwarnings("ignore")

import torch
from IPython.display import Markdown, display

import latentrobust
from latentrobust.data.images import digits
from latentrobust.data.pairs.formulas import FormulaPairs
from latentrobust.networks.classifiers import build
from latentrobust.perturbation_sets import RTSSet
from latentrobust.reporting import figures
from latentrobust.robustness.attacks import PGD, latent_autoattack
from latentrobust.robustness.objectives import Standard
from latentrobust.robustness.training import Adversarial, PairedData, Setting, Unperturbed
from latentrobust.transforms import random
from latentrobust.transforms.affine import RotationTranslationScale

turns = RotationTranslationScale(degrees=45, scale=0, shift=0)
data = FormulaPairs(digits, turns, "digits", validation=200)
data.setup()
perturbations = RTSSet(data.image_shape, turns)
test = data.first_pairs("test", 96)
print("images:", data.image_shape, " set:", perturbations.ball)

# %% [markdown]
# ## Train three classifiers
# A training perturbation turns a batch into the images that the step is taken on; the objective says what is minimised.


# %%
def train(training_perturbation, epochs=12, batch=64):
    torch.manual_seed(0)
    model, objective = build("lenet5"), Standard()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    count = len(data.splits["train"].images)
    for epoch in range(epochs):
        for index in torch.randperm(count).split(batch):
            pairs = data.pairs("train", index, epoch)
            keys = random.example_keys(0, index, epoch)
            images, targets = training_perturbation(Setting(model, perturbations, pairs, keys, objective.attack_loss))
            loss = objective(model, pairs.x, images, targets).loss.mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


models = {
    "standard": train(Unperturbed()),
    "augmentation": train(PairedData()),
    "adversarial": train(Adversarial(steps=3, relative_step=0.5)),
}

# %% [markdown]
# ## Attack them
# One call for several radii: what fools within a small one is kept at the larger ones, so the curve can only fall.

# %%
radii = [0.25, 0.5, 0.75, 1.0]
attack = PGD(steps=20, relative_step=0.2, restarts=2)
curves, found = {}, {}
for name, model in models.items():
    found[name] = attack(model, perturbations, test.x, test.labels, radii=radii)
    standing = (~found[name].fooled).float().mean(1)
    curves[name] = dict(zip(radii, standing.tolist(), strict=True))
    right = (model(test.x).argmax(1) == test.labels).float().mean()
    print(f"{name:13} clean {right:.2f}, worst case " + ", ".join(f"{share:.2f}" for share in standing))
display(figures.robust_accuracy(curves))

# %% [markdown]
# What the attack made of the first digits against the standard model, at the full radius.

# %%
worst = found["standard"].images[-1][:8]
said = models["standard"](worst).argmax(1).tolist()
outcomes = [f"{true} → {other}" for true, other in zip(test.labels.tolist(), said, strict=False)]
display(figures.adversarial_rows(test.x[:8], worst, outcomes, "Found within ε = 1 against “standard”"))

# %% [markdown]
# PGD may miss something. `latent_autoattack` adds adaptive steps, targeted losses, restarts and a search without
# gradients; it contains the plain run, so its worst case is never better.

# %%
strong = latent_autoattack(steps=20, restarts=2, draws=20)
harder = strong(models["adversarial"], perturbations, test.x, test.labels, radii=radii)
print("adversarial, worst case of all attacks:", (~harder.fooled).float().mean(1).tolist())

# %% [markdown]
# ## Certify
# Smoothing votes over noise in the latent space. `noise_level` gives the smallest σ with which n unanimous votes can
# certify a radius. Certificates hold with the condition fixed at x, and say nothing outside the set.

# %%
radius = 0.25
sigma = latentrobust.noise_level(radius, n=1000, alpha=0.001)
smoothed = latentrobust.SmoothedModel(models["adversarial"], perturbations, sigma)
certificate = smoothed.certify(test.x[:48], n0=50, n=1000, alpha=0.001)
right = certificate.prediction == test.labels[:48]
print(
    f"σ = {sigma:.3f}: right {right.double().mean():.2f}, abstained {(certificate.prediction < 0).double().mean():.2f}"
)
display(figures.certified_accuracy({"adversarial": torch.where(right, certificate.radius, -1.0).numpy()}, [radius]))

# %% [markdown]
# ## Or in one call
# For any `nn.Module` from images in [0, 1] to logits, and any data.

# %%
report = latentrobust.assess(
    models["adversarial"],
    perturbations,
    (test.x, test.labels, test.perturbed),
    robust=latentrobust.RobustSettings(attacks={"pgd": attack}, radii=radii),
    certify=latentrobust.CertifySettings(radii=[0.1, 0.25], n=1000, examples=32),
)
display(Markdown(report.to_markdown()))
