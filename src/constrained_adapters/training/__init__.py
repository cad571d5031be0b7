"""Domain after domain: the stock Trainer, its callbacks, the sequence, and resuming."""
