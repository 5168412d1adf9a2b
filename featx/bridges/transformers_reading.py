"""Maps as the models of transformers return them: feature maps of its backbones, hidden states of its other models.

The cells of some lie elsewhere than the pixels do, as `featx.verify(model, values=True)` finds. Hiera: its blocks take
tokens in windows. HieraModel puts them in that order and HieraBackbone does not, although the encoder of both puts maps
back from it. MobileViTV2: a last row or column that fills no window of cells is lost. RF-DETR: windows are cut with
height and width swapped, which square images hide.
"""

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from inspect import getclosurevars, unwrap
from typing import Any, Self

import torch
from torch import Tensor, nn

from ..errors import ContractError, InputError
from ..tracing.map_layout import MapLayout, Size
from ..tracing.third_party_errors import third_party


class Recorded:
    """A hook with which transformers records hidden states, which can be pickled."""

    def __init__(self, key: str, index: int, capture_initial_hidden_state: bool) -> None:
        from transformers.utils.output_capturing import install_output_capuring_hook

        self._facts = (key, index, capture_initial_hidden_state)
        bearer = nn.Identity()
        install_output_capuring_hook(bearer, *self._facts)
        (self._hook,) = bearer._forward_hooks.values()

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        return self._hook(module, inputs, output)

    def __reduce__(self) -> tuple[Any, ...]:
        return Recorded, self._facts

    def __deepcopy__(self, memo: dict[int, Any]) -> "Recorded":
        return copy(self)


def record(tower: Any) -> None:
    """Install the package's hooks that record hidden states now, not at the first run, and so that they can be pickled.

    In place. Versions without such hooks have none to install.
    """
    if find_spec("transformers.utils.output_capturing") is None:
        return
    from transformers.utils.output_capturing import maybe_install_capturing_hooks

    maybe_install_capturing_hooks(tower)
    for module in tower.modules():
        for key, hook in module._forward_hooks.items():
            if getattr(hook, "__name__", "") == "output_capturing_hook":
                facts = getclosurevars(hook).nonlocals
                recorded = Recorded(facts["key"], facts["index"], facts["capture_initial_hidden_state"])
                module._forward_hooks[key] = recorded


class Windows:
    """A hook on Hiera's embeddings that puts tokens in the order that its encoder takes."""

    def __init__(self, config: Any) -> None:
        self.config = config

    def __call__(self, _module: nn.Module, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> tuple[Any, ...]:
        from transformers.models.hiera.modeling_hiera import unroll

        tokens, *others = output
        height, width = inputs[0].shape[-2:]
        schedule = [self.config.query_stride] * len(self.config.depths[:-1])
        return (unroll(tokens, (height, width), self.config.patch_stride, schedule), *others)


def put_in_place(tower: Any) -> tuple[str, ...]:
    """Correct a model in place whose cells lie elsewhere at every size; returns a sentence for each correction."""
    if type(tower).__name__ != "HieraBackbone" or "unroll" in unwrap(type(tower).forward).__code__.co_names:
        return ()
    tower.embeddings.register_forward_hook(Windows(tower.config))
    return ("HieraBackbone itself gives maps whose cells are scrambled, because it does not put tokens in windows",)


def size_divisor(config: Any) -> int:
    """What the sides of images must be multiples of, in pixels, because cells are lost otherwise."""
    return config.output_stride * config.patch_size if config.model_type == "mobilevitv2" else 1


@dataclass(frozen=True)
class TransformersReading:
    """Maps from an entry of the output of a model's part that takes images, such as its hidden states.

    tower: path of that part. arguments: what it is called with beside images. entry: of its output.
    names, layouts: of the level's module, and how the tensor of a level becomes a map; one for each level.
    places: position of its tensor in the entry, by level.
    """

    tower: str
    arguments: Mapping[str, Any]
    entry: str = "hidden_states"
    names: Sequence[str] = ()
    layouts: Sequence[MapLayout] = ()
    places: Mapping[int, int] = field(default_factory=dict)

    def part(self, model: nn.Module) -> Any:
        """The part of the model that takes images."""
        return model.get_submodule(self.tower)

    def tensors(self, model: nn.Module, x: Tensor) -> Sequence[Tensor]:
        """All of the entry; ThirdPartyError if the model does not take the images."""
        tower, arguments = self.part(model), self.arguments
        if tower.config.model_type == "vit_mae":  # a masked autoencoder shuffles patches by noise: this leaves them
            patches = (x.shape[2] // tower.config.patch_size) * (x.shape[3] // tower.config.patch_size)
            noise = torch.arange(patches, device=x.device, dtype=x.dtype).expand(x.shape[0], -1)
            arguments = {**arguments, "noise": noise}
        tensors = third_party(tower, pixel_values=x, **arguments).get(self.entry) or ()
        if len(tensors) <= max(self.places.values(), default=0):
            raise ContractError(f"{type(tower).__name__} returned {len(tensors)} tensors as {self.entry}")
        return tensors

    def maps(self, model: nn.Module, x: Tensor, levels: Sequence[int]) -> list[Tensor]:
        return [map_ for _, map_ in self.tokens(model, x, levels)]

    def tokens(self, model: nn.Module, x: Tensor, levels: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        tensors, size = self.tensors(model, x), (x.shape[2], x.shape[3])
        return [self.layouts[i].split(tensors[self.places[i]], size, self.names[i]) for i in levels]

    def narrowed(self, model: nn.Module, levels: Sequence[int]) -> Self:
        """How `levels` are had of the model, in which a backbone is set to return these alone, in place."""
        if self.entry != "feature_maps":
            return replace(self, places={level: self.places[level] for level in levels})  # fewer may be left
        tower = self.part(model)
        tower.config.out_features = [tower.out_features[self.places[level]] for level in levels]
        return replace(self, places={level: place for place, level in enumerate(levels)})

    def check_size(self, model: nn.Module, size: Size) -> None:
        """Raise InputError for images of a size of which cells would lie elsewhere."""
        (height, width), config = size, self.part(model).config
        divisor, problem = size_divisor(config), ""
        if height % divisor or width % divisor:
            problem = f"the last row or column of cells would be lost: choose sides that are multiples of {divisor}"
        elif config.model_type == "rf_detr_dinov2" and config.num_windows > 1 and height != width:
            problem = "its windows would be cut with height and width swapped: choose square images, or num_windows=1"
        if problem:
            name = type(model).__name__
            raise InputError(f"{name} of transformers takes no images of {height}x{width} pixels: {problem}")
