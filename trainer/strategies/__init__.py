"""How networks are spread over ranks: `build_strategy` gives Lightning the one that the configuration names."""

from trainer.strategies.build import build_strategy

__all__ = ["build_strategy"]
