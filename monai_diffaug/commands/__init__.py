"""Subcommands of ``monai-diffaug``, one per file.

Nothing heavier than argparse is imported before a command runs.
"""
