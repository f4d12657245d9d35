"""Generation: a person's own files through a trained model to files."""
