"""Pairs of examples: sources of images, and the data module that perturbs them in batches on the training device."""
