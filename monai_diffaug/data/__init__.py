"""What a training pipeline needs beside the transforms: a loader that re-raises, stable hashes, keys that survive GDSDataset."""
