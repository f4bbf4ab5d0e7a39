"""How gradients are clipped; the public names are in clip and grad_clip."""
