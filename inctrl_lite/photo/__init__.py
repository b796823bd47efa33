"""The photo detector: a learned prior for EfficientNet-Lite0."""
