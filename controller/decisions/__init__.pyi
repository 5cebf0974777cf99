from . import observation_builder as observation_builder
from .observation_builder import benchmark_scores as benchmark_scores
from .observation_builder import planned_tokens as planned_tokens
from .policy_request import UnreadError as UnreadError
from .policy_request import history_request as history_request
from .policy_request import near as near
from .policy_request import read_answer as read_answer
from .policy_request import read_observed as read_observed
