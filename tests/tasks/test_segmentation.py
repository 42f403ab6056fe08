"""Scores of maps of classes, against loops over pixels."""

import torch

from latentrobust.robustness.maps import intersection_over_union


def scores(predictions, labels, classes):
    """Mean intersection over union by its definition: over classes that occur, pixels with a label alone."""
    pairs = [(int(p), int(t)) for p, t in zip(predictions.flatten(), labels.flatten(), strict=True) if t >= 0]
    values = []
    for label in range(classes):
        both = sum(p == t == label for p, t in pairs)
        either = sum(label in (p, t) for p, t in pairs)
        if either:
            values.append(both / either)
    return sum(values) / len(values)


def test_the_published_mistake_is_not_repeated():
    """Bits of class numbers gave 0.4 for this pair of maps; the intersection over union is a quarter."""
    iou = intersection_over_union(36)
    iou.update(torch.tensor([[[1, 2]]]), torch.tensor([[[2, 2]]]))
    assert float(iou.compute()) == 0.25


def test_intersection_over_union_equals_its_definition():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(-1, 5, (6, 4, 5), generator=generator)
    predictions = torch.randint(0, 6, (6, 4, 5), generator=generator)  # class 6 of 7 never occurs
    iou = intersection_over_union(7)
    for part in (slice(0, 2), slice(2, 6)):
        iou.update(predictions[part], labels[part])
    torch.testing.assert_close(float(iou.compute()), scores(predictions, labels, 7), rtol=1e-6, atol=1e-6)
