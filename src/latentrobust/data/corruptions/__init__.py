"""Common corruptions of images: as pairs, as files in the published layouts, and as a grid of test images."""
