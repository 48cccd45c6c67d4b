"""``python -m flows.cli`` is ``retrain``."""

from flows.cli.main import main

if __name__ == "__main__":
    main()
