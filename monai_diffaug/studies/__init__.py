"""Studies: measures of what the models and the edits are worth, each run by ``monai-diffaug evaluate NAME``.

Nothing else in the package imports this folder, except the command line.
"""
