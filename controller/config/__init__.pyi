from .checkpoint_layouts import layout_of as layout_of
from .proxy_plan import SearchPlan as SearchPlan
from .proxy_plan import rungs_of as rungs_of
from .proxy_plan import subsampled as subsampled
from .run_yaml import RunConfig as RunConfig
from .run_yaml import load_config as load_config
from .sections import ApprovalSection as ApprovalSection
from .template import TEMPLATE as TEMPLATE
