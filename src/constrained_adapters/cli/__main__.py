"""``python -m constrained_adapters.cli`` is ``crma``."""

from constrained_adapters.cli.main import main

if __name__ == "__main__":
    main()
