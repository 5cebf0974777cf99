from .merges import Merges as Merges
from .merges import NoGradientsError as NoGradientsError
from .mixmin import mixmin as mixmin
from .mixmin import mixmin_of_experts as mixmin_of_experts
