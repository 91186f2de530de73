"""`python -m crossdistill`: the same as the console script."""

from crossdistill.cli import main

if __name__ == "__main__":
    main()
