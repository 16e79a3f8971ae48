"""Measurements; results stand in benchmarks/results/ with date, command, hardware and versions."""
