"""Frozen codecs: pretrained nets that turn a stream's arrays into latents and back."""
