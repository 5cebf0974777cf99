from .asked_benchmarks import AskedBenchmarks as AskedBenchmarks
from .outcomes import keep_outcomes as keep_outcomes
from .samples import Sample as Sample
from .samples import Samples as Samples
from .scorer import Progress as Progress
from .scorer import Scorer as Scorer
from .work_units import UnitScore as UnitScore
from .work_units import WorkUnit as WorkUnit
