"""Settings: of the library's adapters, of ``crma.yaml``, and how that file is read and written."""
