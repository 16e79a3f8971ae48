"""Texts: tokenized once, kept in one flat buffer, drawn in batches of like length."""
