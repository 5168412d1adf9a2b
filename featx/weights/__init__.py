"""From a file or the Hub to the parameters of a model: source, read, layout, load."""

from .load import load_weights as load_weights
from .serialization import push_to_hub as push_to_hub
from .serialization import save as save
