"""The command line: a module for each verb, listed in `verbs.py`."""
