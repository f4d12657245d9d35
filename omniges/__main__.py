"""Run the command line as ``python -m omniges``."""

from omniges.cli import main

if __name__ == "__main__":
    main()
