"""Who the ranks of a run are, how they are started, and where they meet."""
