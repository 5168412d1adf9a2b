"""Load weights from a file, a URL or the Hub: download, read, convert the layout, load; and save them."""

from .load import load_weights as load_weights
from .serialization import push_to_hub as push_to_hub
from .serialization import save as save
