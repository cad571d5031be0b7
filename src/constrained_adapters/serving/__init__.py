"""The adapters of a run behind HTTP: requests of different domains and mixes decode in one batch."""
