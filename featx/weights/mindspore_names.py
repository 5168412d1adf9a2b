"""What MindSpore calls the tensors of a layer, and what its training saves beside a network.

The scale and shift of a norm are gamma and beta, its statistics moving_*; batches are not counted.
"""

from collections.abc import Iterable

import torch

from .names import Rule, renamed
from .state import State, StateDict

# What training saves beside the network.
IGNORES = {
    r"ema\.": "moving averages of the weights",
    r"(moments?[123]?|adam_[mv]|nadam_[mv]|lion_m|prev_gradient|accum|stat|swap)\.": "state of the optimizer",
    r"(learning_rate|global_step|momentum|beta[12]_power|mu_schedule|updates|scale_sense)$": "state of the optimizer",
    r"(current_iterator_step|last_overflow_iterator_step|epoch_num|step_num|loss_scale)$": "progress of the training",
}

# Where the parts of a sequence were flattened, for the extraction of maps, their names have an underscore.
FLATTENED: Rule = (r"^(features?)_(\d+)\.", r"\1.\2.")
LEAVES: tuple[Rule, ...] = (
    (r"\.gamma$", ".weight"),
    (r"\.beta$", ".bias"),
    (r"\.moving_mean$", ".running_mean"),
    (r"\.moving_variance$", ".running_var"),
    (r"\.gamma_$", ".gamma"),
)
TO_STATISTICS: tuple[Rule, ...] = (
    (r"\.gamma$", ".gamma_"),
    (r"\.running_mean$", ".moving_mean"),
    (r"\.running_var$", ".moving_variance"),
)
COUNTER = ".num_batches_tracked"


def plain(state: State, rules: Iterable[Rule] = ()) -> StateDict:
    """The tensors after the rules, with PyTorch's names of what is in a norm, and its count of batches at zero."""
    new = renamed(state, (FLATTENED, *rules, *LEAVES))
    norms = [name.removesuffix(".running_mean") for name in new if name.endswith(".running_mean")]
    return new | {norm + COUNTER: torch.tensor(0) for norm in norms}


def foreign(state: State, rules: Iterable[Rule] = ()) -> StateDict:
    """The way back: norms are the modules whose weight is a vector."""
    norms = {name.removesuffix(".weight") for name, t in state.items() if name.endswith(".weight") and t.ndim == 1}
    leaves = {"weight": "gamma", "bias": "beta"}

    def leaf(name: str) -> str:
        module, _, last = name.rpartition(".")
        return f"{module}.{leaves.get(last, last)}" if module in norms else name

    kept = {name: tensor for name, tensor in renamed(state, TO_STATISTICS).items() if not name.endswith(COUNTER)}
    return renamed({leaf(name): tensor for name, tensor in kept.items()}, rules)
