"""The transforms, an array form and a dictionary form (suffix d) in each file."""
