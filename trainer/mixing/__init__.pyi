from .epochs import SourceVersions as SourceVersions
from .epochs import epochs_of as epochs_of
from .epochs import passes as passes
from .order import MixtureOrder as MixtureOrder
