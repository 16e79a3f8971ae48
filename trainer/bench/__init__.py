"""Measurements of one thing against another, and what follows from them."""
