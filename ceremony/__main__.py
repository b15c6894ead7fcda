"""`python -m ceremony` is the program `ceremony`."""

from ceremony_engine import main

if __name__ == "__main__":
    main()
