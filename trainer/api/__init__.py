"""The public names of the package `trainer`, see docs/python.md."""
