"""Pure knowledge about ceremonies: definition, instance, commands, effects and the fold.

A package of the ceremony engine.
"""
