"""The subcommands of ``monai-diffaug``, one a module; nothing heavier than argparse is imported until one runs."""
