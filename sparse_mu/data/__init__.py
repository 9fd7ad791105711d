"""Data: sources, splits and augmentation."""
