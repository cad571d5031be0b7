"""Methods × orders × seeds: resumable cells, settings chosen on validation, tables from JSON alone."""
