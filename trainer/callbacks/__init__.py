"""Callbacks that a run may choose: averages of weights, frozen parameters, and those of the user's own."""
