"""Estimates before a run starts: memory of each device."""
