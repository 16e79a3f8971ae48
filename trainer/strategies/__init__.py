"""Lightning strategies, one for each way of spreading networks over ranks."""
