"""The floor: a linear classifier on the features of encoders that are not trained. What training has to beat."""

from trainers.m2can.floor.fit import Features, Floor, fit_floor
from trainers.m2can.floor.network import FloorNetwork, Network

__all__ = ["Features", "Floor", "FloorNetwork", "Network", "fit_floor"]
