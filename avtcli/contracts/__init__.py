"""The contracts of the plugins: what a backbone, a family, a data set, an objective, an exporter or a tracker must offer."""

from avtcli.contracts.backbones import Backbone, Code, PublishedCheckpoint
from avtcli.contracts.image_data import MAX_PIXELS, ImageData, MemorySplit, Notify, Split, name_hash
from avtcli.contracts.objectives import Loss, Objective, Prediction, Role, Target
from avtcli.contracts.outputs import Exporter, Tracker
from avtcli.contracts.transform_families import Size, TransformFamily

__all__ = [
    "MAX_PIXELS",
    "Backbone",
    "Code",
    "Exporter",
    "ImageData",
    "Loss",
    "MemorySplit",
    "Notify",
    "Objective",
    "Prediction",
    "PublishedCheckpoint",
    "Role",
    "Size",
    "Split",
    "Target",
    "Tracker",
    "TransformFamily",
    "name_hash",
]
