"""Checkpoints: the store (atomic, verified), the exact state in them, and when they are saved."""
