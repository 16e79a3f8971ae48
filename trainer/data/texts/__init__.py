"""Texts: read, tokenized once into a flat buffer, and batched by length."""
