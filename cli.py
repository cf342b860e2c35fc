"""The checkout's launcher: `python cli.py ...` and `torchrun ... cli.py ...` do what `codo ...` does."""

from codo.cli import main

if __name__ == "__main__":
    main()
