"""What a run reports: metric lines, throughput, W&B, progress, and the summary at its end."""
