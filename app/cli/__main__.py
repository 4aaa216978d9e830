"""`python -m app.cli`: the same as `acinus`."""

from app.cli.application import main

if __name__ == "__main__":
    main()
