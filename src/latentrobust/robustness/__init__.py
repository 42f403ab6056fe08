"""Algorithms on a model over a perturbation set: attacks, training perturbations, smoothing, assessment."""
