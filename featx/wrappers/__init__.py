"""Wrappers that return a model's maps. A Pyramid computes maps; the extractor selects, orders and prunes them."""

from .extractor import FeatureExtractWrapper as FeatureExtractWrapper
