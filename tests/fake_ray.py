"""A stand-in for Ray that starts no process."""

from types import SimpleNamespace

from featx.bulk.pipeline import Job


class Asked:
    """A cluster of these nodes that notes what actors are asked of it, and starts none."""

    def __init__(self, *nodes: dict[str, float]) -> None:
        self._nodes = nodes
        self.exceptions = SimpleNamespace(RayActorError=ConnectionError)
        context = SimpleNamespace(enable_progress_bars=True, max_consecutive_actor_init_deaths=3)
        self.data = SimpleNamespace(
            DataContext=SimpleNamespace(get_current=lambda: context),
            ActorPoolStrategy=lambda **sizes: sizes,
            from_items=lambda rows, **_: SimpleNamespace(map_batches=self.note),
        )

    def is_initialized(self) -> bool:
        return True

    def nodes(self) -> list[dict]:
        return [{"Alive": True, "Resources": node} for node in self._nodes]

    def put(self, job: Job) -> Job:
        self.job = job
        return job

    def note(self, actor: type, **asked: object) -> SimpleNamespace:
        self.actor, self.asked = actor, asked
        return SimpleNamespace(iter_rows=lambda: iter(()))
