from .merges import Merges as Merges
from .merges import NoGradientsError as NoGradientsError
from .mixmin import mixmin as mixmin
