"""The `optimize` section of a question, checked on its own: a search resolves the rest for each candidate."""

from __future__ import annotations

from pydantic import ValidationError

from moeplan.errors import InputError
from moeplan.files.scenario.question import Question
from moeplan.files.scenario.schema_search import OptimizeFile
from moeplan.files.scenario.schema_walk import problems_of


def read_search(question: Question) -> OptimizeFile:
    """The checked section, with its defaults. Raises InputError with every problem of it."""
    node = question.tree.child("optimize")
    data = {} if node is None else node.plain()
    try:
        return OptimizeFile.model_validate(data)
    except ValidationError as error:
        raise InputError(problems_of(error, question.tree, ("optimize",))) from error
