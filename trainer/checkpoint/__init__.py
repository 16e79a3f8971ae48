"""Checkpoints: the store (atomic, manifested, verified), the exact state in them, and when they are taken."""
