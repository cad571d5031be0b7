"""What is remembered of a finished domain? Statistics that stand in for its data, never the text itself."""
