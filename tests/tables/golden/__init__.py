"""Golden logs: recorded commands with digests of their results, so that every change of the fold is noticed."""
