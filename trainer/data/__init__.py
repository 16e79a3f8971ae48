"""Data: who takes which sample when (samplers), batches gathered in one go (loaders), image and text sources."""
