"""Python that computes what the page shows."""

from collections.abc import Sequence

from .choice import Choice, Values

# Of a model and of what is computed with it; `{}` is what the page was asked for.
MAPS = ["with torch.inference_mode():", "    maps = model(image)"]
SIMILARITY = ["alike = similarity(maps[0], ({:.4f}, {:.4f}))"]
ATTENTION = ["with torch.inference_mode(), featx.capture_attention(model, [{!r}]) as seen:", "    model(image)"]


def of_maps(choice: Choice, size: int | None, out_indices: Sequence[int]) -> str:
    """Code of the maps of some levels, by their positions. size: pixels of the shorter side, None for the default."""
    return _code(choice, size, MAPS, out_indices=list(out_indices))


def of_similarity(choice: Choice, size: int | None, level: int, point: tuple[float, float]) -> str:
    """Code of the similarity of one level's cells to the one at a point."""
    compared = [line.format(*point) for line in SIMILARITY]
    return _code(choice, size, [*MAPS, *compared], "as_seen, similarity", out_indices=[level])


def of_attention(choice: Choice, size: int | None, block: str | None) -> str:
    """Code of the attention of a block."""
    return _code(choice, size, [line.format(block) for line in ATTENTION])


def _code(
    choice: Choice, size: int | None, computed: Sequence[str], imported: str = "as_seen", **chosen: object
) -> str:
    arguments = {**choice.arguments(), "features_only": True, **chosen}
    called = ", ".join([repr(choice.name), *(f"{key}={value!r}" for key, value in arguments.items())])
    sized = "" if size is None else f", size={size}"
    seeded = [f"torch.manual_seed({choice.seed})"] if choice.values is Values.random else []
    lines = [
        "import torch",
        "",
        "import featx",
        "from featx.images import open_image",
        f"from featx.viz import {imported}",
        "",
        *seeded,
        f"model = featx.create_model({called}).eval()",
        f'image = as_seen(open_image("photograph.jpg"), model{sized})',
        *computed,
    ]
    return "\n".join(lines)
