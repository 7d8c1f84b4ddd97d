"""What owns weights: the registry that loads each model once a process, and the models."""
