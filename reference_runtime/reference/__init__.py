"""Implementations of the engine parts that need a GPU, a server or a checkpoint."""
