"""Classify images with a convolutional network."""
