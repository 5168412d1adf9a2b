"""Models as sources of maps. Whatever can return maps is a Pyramid; the extractor selects, orders and prunes."""

from .extractor import FeatureExtractWrapper as FeatureExtractWrapper
