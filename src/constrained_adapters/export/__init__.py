"""What leaves the house: adapters, mixes and merged models in the forms that inference engines read."""
