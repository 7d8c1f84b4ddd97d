"""Measures of what the models and the edits are worth."""
