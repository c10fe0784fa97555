"""Images restored by a model of a task: files of any size and mode in, the same kind of file out.

picture.py   a file as pixels, alpha and colour profile, and back
tiles.py     a network of one size run over an image of any other
restorer.py  a picture through a task's condition, the sampler, and back into the picture
"""

from fastddpm.restoration.picture import Picture, read_picture
from fastddpm.restoration.restorer import Restorer, load_restorer
from fastddpm.restoration.tiles import TiledModel

__all__ = ["Picture", "Restorer", "TiledModel", "load_restorer", "read_picture"]
