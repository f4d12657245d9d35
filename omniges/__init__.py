"""omniges: BEAT2 recordings to verified shards, and one joint flow model over text, audio and gesture."""

__version__ = "0.2.0"
