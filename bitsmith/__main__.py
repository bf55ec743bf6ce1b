"""`python -m bitsmith`."""

from bitsmith.cli import main

if __name__ == "__main__":
    main()
