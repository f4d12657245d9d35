"""Frozen codecs: pretrained networks that encode a stream's arrays as latents, and decode latents as arrays."""
