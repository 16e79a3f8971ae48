"""Images: found, decoded once, kept as bytes, changed on the device."""
