"""The preprocess run: find recordings, convert them, pack shards, report. It imports neither torch nor the trainer."""
