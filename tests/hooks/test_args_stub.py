"""The stub of PipelineHookArgs repeats what is generated from one table."""

import ast
import dataclasses
from pathlib import Path

import robo_orchard_fasthooks
from robo_orchard_fasthooks.mixin import PipelineHookArgs

STUB = Path(robo_orchard_fasthooks.__file__).with_name("_args.pyi")
CLASS = next(
    node
    for node in ast.parse(STUB.read_text()).body
    if isinstance(node, ast.ClassDef)
)


def words(docstring):
    return docstring.split()


def test_the_fields():
    stated = {
        node.target.id: node.value
        for node in CLASS.body
        if isinstance(node, ast.AnnAssign)
    }
    fields = dataclasses.fields(PipelineHookArgs)
    assert list(stated) == [field.name for field in fields]
    for field in fields:
        value = stated[field.name]
        if value is None:
            assert field.default is dataclasses.MISSING
        else:
            assert field.default == ast.literal_eval(value)


def test_the_docstrings():
    assert words(ast.get_docstring(CLASS)) == words(PipelineHookArgs.__doc__)
    (method,) = (
        node
        for node in CLASS.body
        if getattr(node, "name", None) == "copy_with_updates"
    )
    assert words(ast.get_docstring(method)) == words(
        PipelineHookArgs.copy_with_updates.__doc__
    )
