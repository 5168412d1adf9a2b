"""Bridges to models of other packages: `timm/…`, `torchvision/…` and `transformers/…`.

A bridge is the module that is named after its package, which it imports on first use. It has five functions: `build`
returns the package's own model for a name, `restore` that of a `config.json`, `pyramid` returns a Pyramid for such a
model, `load` loads a checkpoint into it, and `names` lists all names.
"""

from ..bridge_registry import Bridge, register_bridge

register_bridge(Bridge("timm", f"{__name__}.timm"))
register_bridge(Bridge("torchvision", f"{__name__}.torchvision"))
register_bridge(Bridge("transformers", f"{__name__}.transformers", has_own_names=False))
