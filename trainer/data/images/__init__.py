"""Image data: sources, decoding, cache, batches, augmentation on the device."""
