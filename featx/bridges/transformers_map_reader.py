"""TransformersMapReader: feature maps of transformers' backbones, and hidden states of its other models.

Some models misplace cells, as `featx.verify(model, values=True)` finds. Hiera: its blocks expect tokens in the order of
windows, and the encoder reverses that order for its maps, but only HieraModel, not HieraBackbone, applies it first.
MobileViTV2: a last row or column that does not fill a patch of cells is lost. RF-DETR: windows are cut with height and
width swapped, which has no effect on square images.
"""

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from inspect import getclosurevars, unwrap
from typing import Any, Self

import torch
from torch import Tensor, nn

from ..errors import ArgumentError, ContractError, InputError
from ..tracing.map_layout import MapLayout, Size
from ..tracing.third_party_errors import third_party

# The field of a backbone's configuration that sends its maps through the last norm, and the names of last norms.
CHOICE = "apply_layernorm"
LAST_NORMS = ("layernorm", "layer_norm", "norm", "post_layernorm", "ln_post")


class RecordingHook:
    """transformers' hook that records hidden states, in a form that can be pickled."""

    def __init__(self, key: str, index: int, capture_initial_hidden_state: bool) -> None:
        from transformers.utils.output_capturing import install_output_capuring_hook

        self._arguments = (key, index, capture_initial_hidden_state)
        module = nn.Identity()
        install_output_capuring_hook(module, *self._arguments)
        (self._hook,) = module._forward_hooks.values()

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        return self._hook(module, inputs, output)

    def __reduce__(self) -> tuple[Any, ...]:
        return RecordingHook, self._arguments

    def __deepcopy__(self, memo: dict[int, Any]) -> "RecordingHook":
        return copy(self)


def install_recording_hooks(tower: Any) -> None:
    """Install the hooks that the package would install in the first forward, as RecordingHooks, in place.

    Older versions of the package have no such hooks.
    """
    if find_spec("transformers.utils.output_capturing") is None:
        return
    from transformers.utils.output_capturing import maybe_install_capturing_hooks

    maybe_install_capturing_hooks(tower)
    for module in tower.modules():
        for key, hook in module._forward_hooks.items():
            if getattr(hook, "__name__", "") == "output_capturing_hook":
                values = getclosurevars(hook).nonlocals
                arguments = values["key"], values["index"], values["capture_initial_hidden_state"]
                module._forward_hooks[key] = RecordingHook(*arguments)


class WindowOrder:
    """A hook on Hiera's embeddings that puts tokens in the order of windows, which its encoder expects."""

    def __init__(self, config: Any) -> None:
        self.config = config

    def __call__(self, _module: nn.Module, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> tuple[Any, ...]:
        from transformers.models.hiera.modeling_hiera import unroll

        tokens, *others = output
        height, width = inputs[0].shape[-2:]
        schedule = [self.config.query_stride] * len(self.config.depths[:-1])
        return (unroll(tokens, (height, width), self.config.patch_stride, schedule), *others)


def correct_cell_order(tower: Any) -> tuple[str, ...]:
    """Correct a model that misplaces cells at every size, in place, and return a sentence for each correction."""
    if type(tower).__name__ != "HieraBackbone" or "unroll" in unwrap(type(tower).forward).__code__.co_names:
        return ()
    tower.embeddings.register_forward_hook(WindowOrder(tower.config))
    return ("HieraBackbone itself returns maps with scrambled cells, because it does not put tokens in windows",)


def size_divisor(config: Any) -> int:
    """Pixels that the sides of images must be multiples of, so that no cells are lost."""
    return config.output_stride * config.patch_size if config.model_type == "mobilevitv2" else 1


@dataclass(frozen=True)
class TransformersMapReader:
    """Returns maps from an entry of the output of a model's image tower, such as its hidden states.

    Attributes:
        tower: path of the image tower.
        arguments: its keyword arguments besides images.
        entry: the entry of its output, a sequence of tensors.
        names: the name of each level.
        layouts: the layout of each level's tensor.
        indices: the index of each remaining level's tensor in the entry.
        norm: path of the last norm in the tower, if maps and prefix tokens pass through it here; "" otherwise.
    """

    tower: str
    arguments: Mapping[str, Any]
    entry: str = "hidden_states"
    names: Sequence[str] = ()
    layouts: Sequence[MapLayout] = ()
    indices: Mapping[int, int] = field(default_factory=dict)
    norm: str = ""

    def tower_of(self, model: nn.Module) -> Any:
        """The image tower of the model."""
        return model.get_submodule(self.tower)

    def tensors(self, model: nn.Module, x: Tensor) -> Sequence[Tensor]:
        """All tensors of the entry. ThirdPartyError if the model does not accept the images."""
        tower, arguments = self.tower_of(model), self.arguments
        if tower.config.model_type == "vit_mae":  # ascending noise keeps the order of the patches
            patches = (x.shape[2] // tower.config.patch_size) * (x.shape[3] // tower.config.patch_size)
            noise = torch.arange(patches, device=x.device, dtype=x.dtype).expand(x.shape[0], -1)
            arguments = {**arguments, "noise": noise}
        tensors = third_party(tower, pixel_values=x, **arguments).get(self.entry) or ()
        if len(tensors) <= max(self.indices.values(), default=0):
            raise ContractError(f"{type(tower).__name__} returned {len(tensors)} tensors as {self.entry}")
        return tensors

    def maps(self, model: nn.Module, x: Tensor, levels: Sequence[int]) -> list[Tensor]:
        return [map_ for _, map_ in self.tokens(model, x, levels)]

    def tokens(self, model: nn.Module, x: Tensor, levels: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        tensors, size = self.tensors(model, x), (x.shape[2], x.shape[3])
        pairs = [self.layouts[i].split(tensors[self.indices[i]], size, self.names[i]) for i in levels]
        if not self.norm:
            return pairs
        norm = self.tower_of(model).get_submodule(self.norm)
        return [(norm(prefix), norm(map_.movedim(1, -1)).movedim(-1, 1).contiguous()) for prefix, map_ in pairs]

    def narrowed(self, model: nn.Module, levels: Sequence[int]) -> Self:
        """A reader of `levels` only. A backbone is set to return only these, in place."""
        if self.entry != "feature_maps":
            return replace(self, indices={level: self.indices[level] for level in levels})
        tower = self.tower_of(model)
        tower.config.out_features = [tower.out_features[self.indices[level]] for level in levels]
        return replace(self, indices={level: index for index, level in enumerate(levels)})

    def with_norm(self, model: nn.Module) -> Self:
        """A reader of maps that pass through the last norm; a backbone that has the choice is set to it, in place."""
        config = self.tower_of(model).config
        if hasattr(config, CHOICE):
            config.apply_layernorm = True
            return self
        return replace(self, norm=self._last_norm(model))

    def without_norm(self, model: nn.Module) -> Self:
        """A reader of maps as they are before the last norm; a backbone that has the choice is set to it, in place."""
        config = self.tower_of(model).config
        if hasattr(config, CHOICE):
            config.apply_layernorm = False
        return replace(self, norm="")

    def is_normed(self, model: nn.Module) -> bool:
        """Whether maps pass through the last norm."""
        return bool(self.norm) or bool(getattr(self.tower_of(model).config, CHOICE, False))

    def _last_norm(self, model: nn.Module) -> str:
        """Path in the tower of the norm after its blocks. ArgumentError if no norm fits the maps of all levels."""
        tower, chs = self.tower_of(model), {layout.chs for layout in self.layouts}
        found = [
            path
            for path, module in tower.named_modules()
            if isinstance(module, nn.LayerNorm) and {module.normalized_shape[0]} == chs
            if path.rpartition(".")[2] in LAST_NORMS and not any(part.isdigit() for part in path.split("."))
        ]
        name = type(tower).__name__
        if len(found) != 1 or self.entry != "hidden_states":
            raise ArgumentError(f"{name} of transformers has no last norm of tokens for its maps: leave norm_maps out")
        if self.names[-1].endswith(found[0]):
            raise ArgumentError(
                f"{name} of transformers has no last norm for all maps: it applies {found[0]} itself, to the last one "
                "only; leave norm_maps out"
            )
        return found[0]

    def check_size(self, model: nn.Module, size: Size) -> None:
        """Raise InputError for an image size at which cells would be misplaced."""
        (height, width), config = size, self.tower_of(model).config
        divisor, problem = size_divisor(config), ""
        if height % divisor or width % divisor:
            problem = f"the last row or column of cells would be lost: choose sides that are multiples of {divisor}"
        elif config.model_type == "rf_detr_dinov2" and config.num_windows > 1 and height != width:
            problem = "its windows would be cut with height and width swapped: choose square images, or num_windows=1"
        if problem:
            name = type(model).__name__
            raise InputError(f"{name} of transformers takes no images of {height}x{width} pixels: {problem}")
