"""Pure array functions: masked reductions, distances, prototype memory, augmentation."""
