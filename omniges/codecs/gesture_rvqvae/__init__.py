"""GestureLSM's four RVQ-VAEs as one codec of gesture."""
