from .experiment_runner import ExperimentRunner as ExperimentRunner
from .spec import ExperimentSpec as ExperimentSpec
from .spec import spec_of as spec_of
from .workspace import ExperimentProgress as ExperimentProgress
from .workspace import discard as discard
from .workspace import read_progress as read_progress
