"""What random keys are for: one number per purpose, so that no two consumers draw from the same stream.

A *root* goes right behind the seed: ``example_keys(seed, index, Purpose.QUALITY)``, an epoch behind it where there is
one. The others are folded into an example's key where several things are drawn for it.
"""

from __future__ import annotations

from enum import IntEnum, unique


@unique
class Purpose(IntEnum):
    """A purpose of random keys. The numbers decide the draws: a new purpose gets a new number, none is ever reused."""

    # Roots: pairs of the data. The first three are the splits.
    PAIRS_TRAIN = 0
    PAIRS_VALIDATION = 1
    PAIRS_TEST = 2
    PAIRS_CHOICE = 3  # which of an example's fixed perturbations an epoch shows
    PAIRS_FIXED = 4
    ORDER = 5  # of the training examples in an epoch
    # Roots: images that are made.
    CORRUPTIONS_TRAIN = 10  # of the training file
    CORRUPTIONS_TEST = 11
    CORRUPTIONS_CHOICE = 12
    PHOTOS = 13
    SCENES = 14
    FROST = 15
    FROST_ANGLE = 16
    # Roots: learners, tasks and measurements.
    LEARNING = 20
    LEARNING_VALIDATION = 21
    LEARNING_SAMPLES = 22
    LEARNING_START = 23  # of the examples that a network is initialised from
    TRAINING = 24
    VALIDATION_ATTACK = 25
    QUALITY = 26
    DENSITY = 27
    ASSESSMENT = 28
    CERTIFICATES = 29
    HELD_OUT = 30  # perturbations that nothing was trained on
    FIGURES = 31
    PROBES = 32  # what a model is recognised by
    COVERAGE = 33
    LEARNING_SPREAD = 34
    # Within an example's pair.
    JOINT = 100
    TARGET = 101
    CONDITION = 102
    # Within a learner's step.
    AUGMENT = 110
    NOISE = 111
    # Within a training step of a model.
    CHOICE = 120  # whether an example is perturbed
    START = 121
    DRAW = 122
    BEFORE = 123
    AFTER = 124
    MIXUP = 125
    VIEWS = 126
    LATER_DRAWS = 127  # and their number
    PARTS = 128  # of several perturbations at once, and their number
    # Within the measurement of a set.
    EXPECTED = 130
    OVER = 131
    RECONSTRUCTION = 132
    LIKELIHOOD = 133
    SAMPLE = 134
    # Within attacks and certificates.
    ATTACK_START = 140  # and the number of the walk
    ATTACK_SEARCH = 141  # and the number of the query
    SELECTION = 142
    ESTIMATION = 143
    PREDICTION = 144
    SMOOTHED_ATTACK = 145  # and the place of the radius
