"""Applications that are built on the trainer by its public names alone; each folder has a README."""
