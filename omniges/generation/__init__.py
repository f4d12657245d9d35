"""Generation: from a user's files through a trained model to files."""
