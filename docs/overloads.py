"""Griffe extension that shows the parameters of the first overload of a function with overloads.

The implementation behind overloads has fewer parameters than they do. mkdocs.yml enables the extension.
"""

from typing import Any

import griffe


class FirstOverload(griffe.Extension):
    """Gives `create_model` the parameters that its callers can pass."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Replace the parameters of each function with overloads; griffe calls this for each package."""
        for module in pkg.modules.values():
            for function in module.functions.values():
                if function.overloads:
                    default = function.parameters["features_only"]
                    function.parameters = function.overloads[0].parameters
                    function.parameters["features_only"] = default
