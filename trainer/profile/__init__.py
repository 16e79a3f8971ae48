"""Profilers of chosen steps and ranks: `profiler=torch|memory|nsys|python|simple`."""
