"""In-place changes of a model for training: freezing, stochastic depth, parameter groups, activation checkpointing."""

from .activation_checkpointing import recompute as recompute
from .freezing import freeze as freeze
from .freezing import freeze_norms as freeze_norms
from .freezing import unfreeze as unfreeze
from .parameter_groups import param_groups as param_groups
from .stochastic_depth import drop_path as drop_path
