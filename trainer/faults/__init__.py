"""Stop requests, and the ends of processes."""
