"""Base models in: where they come from, how they are loaded, what identifies them, what can be adapted."""
