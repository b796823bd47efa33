"""The embedded tiny CLIP: its corpus, its pretraining, its weights and model card."""
