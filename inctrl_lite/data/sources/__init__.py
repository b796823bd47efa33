"""Readers of the official layouts, one small function a data set. They write nothing: `prepare` does."""
