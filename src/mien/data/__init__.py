"""Data sets: labelled pictures of faces, one reader a kind."""

from mien.data.affectnet import AffectNet
from mien.data.affwild2 import AffWild2
from mien.data.cifar10 import CIFAR10
from mien.data.dataset import DataSet, Findings
from mien.data.expw import ExpW
from mien.data.fer2013 import FER2013
from mien.data.ferplus import FERPlus
from mien.data.folder import Folder
from mien.data.heldout import HeldOut, open_for
from mien.data.opening import open_dataset
from mien.data.parquet import Parquet
from mien.data.rafdb import RAFDB
from mien.data.row import Row
from mien.data.sfew import SFEW
from mien.data.table import Table

__all__ = [
    "AffWild2",
    "AffectNet",
    "CIFAR10",
    "DataSet",
    "ExpW",
    "FER2013",
    "FERPlus",
    "Findings",
    "Folder",
    "HeldOut",
    "Parquet",
    "RAFDB",
    "Row",
    "SFEW",
    "Table",
    "open_dataset",
    "open_for",
]
