from .families import may_be_padded as may_be_padded
from .families import rope_kinds as rope_kinds
from .families import why_not_prefixes as why_not_prefixes
