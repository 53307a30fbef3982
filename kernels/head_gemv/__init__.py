"""A product of its own for each head: what multi-head latent attention absorbs."""
