"""Stopping on request, and what may go wrong in a run."""
