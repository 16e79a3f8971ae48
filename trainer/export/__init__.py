"""A trained model outside of the framework: written in open formats, proved equal, loaded without the training half."""

from trainer.export.model import ExportedModel, load

__all__ = ["load", "ExportedModel"]
