"""What a run would take: memory of each device."""
