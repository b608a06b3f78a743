"""`python -m relent`: the command line."""

from relent.cli import main

if __name__ == "__main__":
    main()
