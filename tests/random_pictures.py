"""Random pictures, and pictures normalised by definition, for tests of augmentation."""

import numpy as np

B, H, W, PAD = 17, 23, 11, 3
DRAWS = 4001
IMAGENET = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def pictures(seed, rows=B, size=(H, W)):
    return np.random.default_rng(seed).integers(0, 256, (rows, *size, 3), dtype=np.uint8)


def normalised(image, mean=0.5, std=0.5):
    return ((np.asarray(image, np.float64) / 255 - mean) / std).astype(np.float32)
