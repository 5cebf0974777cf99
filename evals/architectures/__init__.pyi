from .model_families import may_be_padded as may_be_padded
from .model_families import rope_kinds as rope_kinds
from .model_families import why_not_prefixes as why_not_prefixes
