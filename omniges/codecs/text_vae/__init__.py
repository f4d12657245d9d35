"""OmniFlow's text VAE as a codec of window texts."""
