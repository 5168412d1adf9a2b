"""Fuse and split projections, such as query, key and value of an attention, that programs store as one or several.

Keys are dotted module paths or slash-separated parameter trees. Every function is pure and returns a new dictionary.
"""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .state_dict_keys import StateDict

QKV = ("q", "k", "v")


def fuse_projections(state: Mapping[str, Tensor], parts: Sequence[str] = QKV, target: str = "qkv") -> StateDict:
    """Concatenate `a.q.weight`, `a.k.weight` and `a.v.weight` as `a.qkv.weight` wherever all parts exist."""
    new: StateDict = {}
    for name, tensor in state.items():
        siblings = _siblings(name, parts)
        if not siblings or not _can_be_stacked([state.get(sibling) for sibling in siblings]):
            new[name] = tensor
        elif name == siblings[0]:
            new[_renamed(name, target)] = torch.cat([state[sibling] for sibling in siblings])
    return new


def split_projections(state: Mapping[str, Tensor], parts: Sequence[str] = QKV, source: str = "qkv") -> StateDict:
    """Split `a.qkv.weight` into equal parts, each with its own memory: the inverse of `fuse_projections`."""
    new: StateDict = {}
    for name, tensor in state.items():
        if _module(name) == source:
            pieces = tensor.chunk(len(parts))
            new |= {_renamed(name, part): piece.clone() for part, piece in zip(parts, pieces, strict=True)}
        else:
            new[name] = tensor
    return new


def _can_be_stacked(tensors: Sequence[Tensor | None]) -> bool:
    """Whether all exist with equal shapes except for the first axis; others keep their names and then fail to load."""
    first = tensors[0]
    return all(
        tensor is not None and first is not None and tensor.ndim and tensor.shape[1:] == first.shape[1:]
        for tensor in tensors
    )


def _siblings(name: str, parts: Sequence[str]) -> list[str]:
    """Names of all parts of the projection that `name` is a part of; empty if it is not a part."""
    return [_renamed(name, part) for part in parts] if _module(name) in parts else []


def _module(name: str) -> str | None:
    """The `b` of `a.b.weight`; None if the name has one component."""
    parts = re.split(r"[./]", name)
    return parts[-2] if len(parts) > 1 else None


def _renamed(name: str, module: str) -> str:
    """`a.b.weight` as `a.<module>.weight`."""
    return re.sub(r"[^./]+([./][^./]+)$", rf"{module}\1", name)
