"""``python -m omniges`` is the command ``omniges``."""

from omniges.cli import main

if __name__ == "__main__":
    main()
