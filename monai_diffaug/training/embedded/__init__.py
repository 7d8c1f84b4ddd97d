"""Data and architectures of the models that ship with the package.

No loop belongs here: the recipes train them.
"""
