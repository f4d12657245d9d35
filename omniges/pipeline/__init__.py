"""The preprocess run: find recordings, convert each, pack shards, report. Imports neither torch nor the trainer."""
