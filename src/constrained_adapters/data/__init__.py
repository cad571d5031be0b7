"""Files and data sets in, examples and tokens with label masks out."""
