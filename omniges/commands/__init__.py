"""The commands: each parses its arguments, builds its settings, makes one call and exits with the right code."""
