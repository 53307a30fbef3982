"""Latent attention of a decode step: what does it cost when all heads share one latent per token?"""
