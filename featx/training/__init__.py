"""What training needs of a model that is there already: functions that work in place, whatever is around a backbone."""

from .drop import drop_path as drop_path
from .freezing import freeze as freeze
from .freezing import freeze_norms as freeze_norms
from .freezing import unfreeze as unfreeze
from .groups import param_groups as param_groups
from .recomputing import recompute as recompute
