"""The page of a run: from the files of a run directory to one HTML file, without torch."""
