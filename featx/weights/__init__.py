"""From a file or the Hub to the parameters of a model: source, read, layout, load."""

from .load import load_weights as load_weights
