from .prior import conclude as conclude
from .prior import write_prior as write_prior
from .proxy_search import Search as Search
from .proxy_search import SearchFailed as SearchFailed
from .proxy_search import eta as eta
from .search_plan import SearchArgs as SearchArgs
from .search_plan import plan_search as plan_search
