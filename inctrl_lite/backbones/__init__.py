"""Frozen backbones: the contract, one module for each family of networks, and a registry of names."""

from inctrl_lite.backbones.base import Backbone, ImageFeatures, Stage, TextEncoder
from inctrl_lite.backbones.registry import PRESETS, load_backbone

__all__ = ["PRESETS", "Backbone", "ImageFeatures", "Stage", "TextEncoder", "load_backbone"]
