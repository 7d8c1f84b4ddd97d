"""MONAI Bundles that ship as package data, and what their configs need beyond MONAI."""
