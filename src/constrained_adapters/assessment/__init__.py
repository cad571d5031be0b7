"""A finished run, or a base with adapters, scored on any sets: what ``crma eval`` does."""
