"""Data sets and caches: re-raising loader, stable hashes, stored keys, pools of edited variants, the lesion bank.

No network is defined here, and nothing here imports ``transforms``.
"""
