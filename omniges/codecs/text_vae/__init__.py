"""OmniFlow's text VAE as a codec of the words of windows."""
