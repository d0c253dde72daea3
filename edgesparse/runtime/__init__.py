"""Run models: modules that compute from packed weights, and what is measured on them."""

from edgesparse.runtime.evaluate import Evaluation, compare, evaluate
from edgesparse.runtime.generate import generate, stream

__all__ = ["Evaluation", "compare", "evaluate", "generate", "stream"]
