"""Report of a checkpoint load, tensor by tensor."""

from collections import Counter
from dataclasses import dataclass, field

from .errors import escaped, shortened


@dataclass(frozen=True, slots=True, repr=False)
class LoadReport:
    """Result of `load_weights`. Names are those of the model, except in `skipped`, which has those of the checkpoint.

    Attributes:
        source: path or address of the checkpoint.
        layout: the program whose naming the checkpoint follows; "native" for the model's own.
        loaded: names of the tensors that were loaded.
        adapted: names of loaded tensors that were converted first, with a description of the conversion.
        skipped: names of checkpoint entries that were not loaded, with the reason.
        fresh: names of model tensors that were not loaded, because the caller skipped them or changed the classifier.
        notes: other changes that the layout's conversion made.
    """

    source: str
    layout: str = "native"
    loaded: tuple[str, ...] = ()
    adapted: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    fresh: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        kinds = {"loaded": self.loaded, "adapted": self.adapted, "skipped": self.skipped, "fresh": self.fresh}
        counts = ", ".join(f"{len(names)} {kind}" for kind, names in kinds.items() if names)
        return f"LoadReport({escaped(self.source)!r}, layout={self.layout!r}: {counts or 'nothing loaded'})"

    def __str__(self) -> str:
        lines = [f"{escaped(self.source)}: {len(self.loaded)} tensors loaded, layout {self.layout}"]
        lines += [f"  {escaped(note)}" for note in self.notes]
        lines += [f"  adapted  {line}" for line in shortened(f"{name}: {how}" for name, how in self.adapted.items())]
        for reason, count in Counter(self.skipped.values()).items():
            names = [name for name, why in self.skipped.items() if why == reason]
            first = ", ".join(map(escaped, names[:3])) + ", …" * (count > 3)
            lines.append(f"  skipped  {count}, {reason}: {first}")
        lines += [f"  fresh    {name}" for name in shortened(self.fresh)]
        return "\n".join(lines)
