"""What is known of a ceremony, pure: definition, instance, commands, effects and the fold.

A package of the ceremony engine.
"""
