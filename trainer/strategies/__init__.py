"""How networks are spread over ranks: `build.build_strategy` gives Lightning the one that the configuration names."""
