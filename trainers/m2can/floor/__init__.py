"""The floor: a linear classifier on the features of encoders that are not trained. What training has to beat."""

from trainers.m2can.floor.fit import Features, Floor, fit_floor, principal_components
from trainers.m2can.floor.network import FloorHead, FloorNetwork, Network
from trainers.m2can.floor.shares import estimate_shares
from trainers.m2can.floor.zero_shot import ZeroShotHead, class_features

__all__ = [
    "Features",
    "Floor",
    "FloorHead",
    "FloorNetwork",
    "Network",
    "ZeroShotHead",
    "class_features",
    "estimate_shares",
    "fit_floor",
    "principal_components",
]
