"""Clipping on CUDA by a graph that is replayed."""
