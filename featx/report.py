"""What loading did, tensor by tensor."""

from collections import Counter
from dataclasses import dataclass, field

from .errors import escaped, shortened


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What `load_weights` did. Every name is the model's, except in `skipped`, which has the checkpoint's.

    source: where the tensors came from. layout: the program whose names they had; "native" for the model's own.
    loaded: the tensors that were filled. adapted: those of them that had to change first, and how.
    skipped: tensors of the checkpoint that were left alone, and why.
    fresh: the model's tensors that stay as they were, because the caller skipped them or asked for another classifier.
    notes: what else the layout's conversion changed.
    """

    source: str
    layout: str = "native"
    loaded: tuple[str, ...] = ()
    adapted: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    fresh: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{escaped(self.source)}: {len(self.loaded)} tensors loaded, layout {self.layout}"]
        lines += [f"  {escaped(note)}" for note in self.notes]
        lines += [f"  adapted  {line}" for line in shortened(f"{name}: {how}" for name, how in self.adapted.items())]
        for reason, count in Counter(self.skipped.values()).items():
            names = [name for name, why in self.skipped.items() if why == reason]
            first = ", ".join(map(escaped, names[:3])) + ", …" * (count > 3)
            lines.append(f"  skipped  {count} tensors, {reason}: {first}")
        lines += [f"  fresh    {name}" for name in shortened(self.fresh)]
        return "\n".join(lines)
