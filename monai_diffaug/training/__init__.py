"""Recipes that train the embedded models, one file each; ``python -m monai_diffaug.training.<recipe> --help``."""
