"""`python -m tests.workers.older serve`: this release with the fold number of the one before it."""

from __future__ import annotations

from tables import effects

# Before any other module reads it.
effects.FOLD -= 1

if __name__ == "__main__":
    from ceremony_engine import main

    main()
