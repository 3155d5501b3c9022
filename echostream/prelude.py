"""Every public name at once, for scripts and notebooks: ``from echostream.prelude import *``."""

from echostream import *  # noqa: F403
from echostream import __all__ as __all__
