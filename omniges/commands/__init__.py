"""The commands: parse, build a typed config, make one call, exit with the right code. No logic lives here."""
