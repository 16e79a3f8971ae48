"""Sentiment and topic of financial headlines, and alerts on a surge of negative ones."""
