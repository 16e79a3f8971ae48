"""The tasks that ship with the trainer, a folder each."""
