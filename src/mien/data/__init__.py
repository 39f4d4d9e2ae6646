"""Data sets: labelled pictures of faces, one reader a kind."""

from mien.data.dataset import DataSet, Findings
from mien.data.ferplus import FERPlus
from mien.data.folder import Folder
from mien.data.opening import open_dataset
from mien.data.parquet import Parquet
from mien.data.row import Row

__all__ = ["DataSet", "FERPlus", "Findings", "Folder", "Parquet", "Row", "open_dataset"]
