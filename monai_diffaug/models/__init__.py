"""Networks and their sources: what owns weights, and the registry that loads each model once per process.

No transform and no edit belongs here.
"""
