"""Models of other packages under the contract: `timm/…`, `torchvision/…` and `transformers/…`.

A bridge is a module here that is named after its package, which it imports when it is called, and has three functions:
`build`, a name to the package's own model, `pyramid`, such a model to a source of maps, and `names`, all that it knows.
"""

from ..bridge_registry import Bridge, register_bridge

register_bridge(Bridge("timm", f"{__name__}.timm"))
register_bridge(Bridge("torchvision", f"{__name__}.torchvision"))
register_bridge(Bridge("transformers", f"{__name__}.transformers", has_own_names=False))
