"""Locks of everything that is installed, with hashes, and what checks them."""
