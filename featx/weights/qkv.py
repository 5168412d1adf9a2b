"""Tensors that one program keeps apart and another stacks in one, as query, key and value of an attention.

Names are of modules, with points between them, or of a tree of parameters, with slashes. Every function is pure:
dictionary in, new dictionary out.
"""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .state_dict_keys import StateDict

QKV = ("q", "k", "v")


def fused(state: Mapping[str, Tensor], parts: Sequence[str] = QKV, whole: str = "qkv") -> StateDict:
    """`a.q.weight`, `a.k.weight` and `a.v.weight` are stacked in `a.qkv.weight`, wherever all parts are there."""
    new: StateDict = {}
    for name, tensor in state.items():
        siblings = _siblings(name, parts)
        if not siblings or not _can_be_stacked([state.get(sibling) for sibling in siblings]):
            new[name] = tensor
        elif name == siblings[0]:
            new[_renamed(name, whole)] = torch.cat([state[sibling] for sibling in siblings])
    return new


def split(state: Mapping[str, Tensor], parts: Sequence[str] = QKV, whole: str = "qkv") -> StateDict:
    """The way back: each part owns its memory."""
    new: StateDict = {}
    for name, tensor in state.items():
        if _module(name) == whole:
            pieces = tensor.chunk(len(parts))
            new |= {_renamed(name, part): piece.clone() for part, piece in zip(parts, pieces, strict=True)}
        else:
            new[name] = tensor
    return new


def _can_be_stacked(tensors: Sequence[Tensor | None]) -> bool:
    """Whether all are there, and alike but for the first axis; others keep their names, under which they do not fit."""
    first = tensors[0]
    return all(
        tensor is not None and first is not None and tensor.ndim and tensor.shape[1:] == first.shape[1:]
        for tensor in tensors
    )


def _siblings(name: str, parts: Sequence[str]) -> list[str]:
    """The names of all parts of the whole that `name` is a part of; none if it is no part."""
    return [_renamed(name, part) for part in parts] if _module(name) in parts else []


def _module(name: str) -> str | None:
    """The `b` of `a.b.weight`; None if there is none."""
    parts = re.split(r"[./]", name)
    return parts[-2] if len(parts) > 1 else None


def _renamed(name: str, module: str) -> str:
    """`a.b.weight` as `a.<module>.weight`."""
    return re.sub(r"[^./]+([./][^./]+)$", rf"{module}\1", name)
