"""Names of tensors, as CVNets and NetsPresso make them."""


def conv_norm(path: str) -> set[str]:
    """Of a convolution without a bias and its batch norm."""
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    return {f"{path}.block.conv.weight", *(f"{path}.block.norm.{leaf}" for leaf in norm)}


def both(*paths: str) -> set[str]:
    """Weights and biases."""
    return {f"{path}.{leaf}" for path in paths for leaf in ("weight", "bias")}
