from .restrictions import ARCHITECTURES as ARCHITECTURES
from .restrictions import NOT_COVERED as NOT_COVERED
from .restrictions import landlock_abi as landlock_abi
from .sandbox import Sandbox as Sandbox
from .sandbox import SandboxError as SandboxError
