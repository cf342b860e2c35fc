"""`python -m codo.cli` is `codo`."""

from codo.cli import main

if __name__ == "__main__":
    main()
