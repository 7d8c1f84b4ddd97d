"""Training recipes, one model per file; each implements ``training.loop.Trainee``.

No loop, optimiser or file format belongs here.
"""
