"""Artifact tokens of ViTs, and registers that are added at test time to remove them from the maps."""

from .artifacts import LevelArtifacts as LevelArtifacts
from .artifacts import artifact_tokens as artifact_tokens
from .neurons import RegisterNeuron as RegisterNeuron
from .neurons import register_neurons as register_neurons
from .registered_vit import add_registers as add_registers
