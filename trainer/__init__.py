"""The engine: configuration in, a distributed run out. It knows no task by name."""

__version__ = "0.1.0"
