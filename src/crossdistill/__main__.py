"""`python -m crossdistill`: the same as the console script."""

from crossdistill.cli.main import main

if __name__ == "__main__":
    main()
