"""What a run tells: metric lines, throughput, W&B, the progress bar, and the table at its end."""
