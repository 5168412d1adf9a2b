"""Suggestions for unknown arguments: names that other libraries use, and misspelled names."""

from collections.abc import Iterable, Sequence

from .errors import ArgumentError
from .spelling import closest

# Other libraries' names for our arguments.
NEAR_MISSES = {
    "feature_only": "features_only",
    "in_channels": "in_chans",
    "n_classes": "num_classes",
    "num_labels": "num_classes",
    "out_features": "out_names",
    "weights": "checkpoint_path",
    "checkpoint": "checkpoint_path",
    "replace_stride_with_dilation": "output_stride",
    "name": "model_name",
    "img_size": "image_size",
    "input_size": "image_size",
    "dropout": "drop_rate",
    "drop_path": "drop_path_rate",
    "pool": "global_pool",
    "pool_type": "global_pool",
    "embed_dim": "dim",
    "num_heads": "heads",
    "patch_size": "patch",
    "reg_tokens": "registers",
}

# Other libraries' arguments without a counterpart here, and what to do instead.
INSTEAD = {
    **dict.fromkeys(
        ("pretrained_cfg", "pretrained_cfg_overlay"),
        "name a tag, such as resnet50.a1_in1k, or pass checkpoint_path=; for other preprocessing set model.data_config",
    ),
    **dict.fromkeys(("scriptable", "exportable", "no_jit"), "leave it out: models are traced and exported as they are"),
    **dict.fromkeys(
        ("dynamic_img_size", "dynamic_img_pad", "strict_img_size"), "leave it out: images of every size are taken"
    ),
    "feature_cfg": "pass out_indices=, and leave the rest out",
}


def refuse_unknown(name: str, given: Iterable[str], known: Sequence[str], common: Sequence[str]) -> None:
    """Raise ArgumentError, with a suggestion for each unknown argument, unless all arguments are fields of the model.

    Args:
        name: the model name.
        given: the argument names that were passed.
        known: fields of the model's configuration.
        common: arguments of every model, which are suggested as well.
    """
    arguments = [*common, *known]
    problems = []
    for word in given:
        if word not in known:
            problems.append(f"{word!r}{_advice(word, [argument for argument in arguments if argument != word])}")
    if problems:
        raise ArgumentError(f"{name} has no argument {', '.join(problems)}; its configuration has {list(known)}")


def _advice(word: str, arguments: Sequence[str]) -> str:
    """A suggestion for the unknown argument `word`; empty if no argument is similar."""
    if word in INSTEAD:
        return f" ({INSTEAD[word]})"
    counterpart = NEAR_MISSES.get(word)
    close = [counterpart] if counterpart in arguments else closest(word, arguments, 1)
    return f" (did you mean {close[0]!r}?)" if close else ""
