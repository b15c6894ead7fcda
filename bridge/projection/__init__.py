"""Projection: follows the changelog of `ceremonies` and keeps the read models, whichever store holds them."""
