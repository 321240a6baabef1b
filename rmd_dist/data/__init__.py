"""Samples, label noise, betons, augmentation and loading."""
