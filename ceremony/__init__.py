"""The program: settings, the worker built from all parts, the command line, the development stack and the demo.

A package of the ceremony engine.
"""
