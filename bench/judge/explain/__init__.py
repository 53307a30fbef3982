"""Why does my server take as long as it does? A benchmark's result file beside the floor and the expected time."""

from bench.judge.explain.attribution import Explanation, explain

__all__ = ["Explanation", "explain"]
