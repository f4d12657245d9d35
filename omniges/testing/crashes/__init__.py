"""System calls recorded, cut off and lost, as a crash or a power cut does it."""
