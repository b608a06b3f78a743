"""`python -m relent`: the command line."""

from relent.cli import run

if __name__ == "__main__":
    run()
