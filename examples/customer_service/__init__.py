"""Answers to customers' questions: an intent classifier, retrieval over an answer base, and hand-over to a person."""
