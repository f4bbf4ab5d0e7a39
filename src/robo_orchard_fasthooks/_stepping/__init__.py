"""Clipping at a step of training; the hook is in grad_clip."""
