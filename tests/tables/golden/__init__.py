"""The golden log: recorded commands with the digests of what they fold to; no change of the fold goes unseen."""
