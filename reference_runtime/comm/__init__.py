"""Ranks and the collectives between them."""
