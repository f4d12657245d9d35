"""OmniFlow's checkpoints: what is in them, how they become a trunk of ours, and the form in which that is kept."""
