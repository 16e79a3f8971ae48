"""A task of the trainer: a two-tower text encoder, trained with in-batch negatives.

The trainer imports the folder as the package `two_tower`, so imports within it are relative.
"""
