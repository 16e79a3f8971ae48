"""Recommends items from their texts and from who liked what; see README.md."""
