"""The package's modules import downward only, and without a circle."""

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = "robo_orchard_fasthooks"
# Other modules are on floor 0 if they are private, and on floor 2 if not.
# `_clipping` and `_profiling` do not import one another. `_lab` puts the hooks
# of public modules into RoboOrchardLab's classes, so it is above them.
FLOORS = {
    **{"_clipping": 1, "_profiling": 1, "_lab": 3},
    **{"lab": 4, "__main__": 4, "": 4},
}
# From the bottom up.
ORDER = [
    f"_clipping.{name}"
    for name in (
        *("gradients", "local", "dtensor", "fsdp1", "refusals"),
        *("algorithm", "parameters", "step"),
    )
]
CYTHON = re.compile(
    r"^[ \t]*(?:from[ \t]+(\S+)[ \t]+c?import[ \t]*(\([^)]*\)|[^#\n]+)"
    r"|c?import[ \t]+([\w.]+))",
    re.M,
)


def python_imports(source, package=PACKAGE):
    """The modules that a module's code imports, also within functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: 1 - node.level or None]
            start = [*parents, node.module] if node.level else [node.module]
            base = ".".join(filter(None, start))
            yield from (f"{base}.{alias.name}" for alias in node.names)


def cython_imports(source):
    """The same of a Cython file, by its lines."""
    code = re.sub(r'"""[\s\S]*?"""', "", source)
    for base, names, module in CYTHON.findall(code):
        if module:
            yield module
        for name in re.findall(r"(\w+)(?: as \w+)?", names):
            yield f"{base}.{name}"


def sources():
    """The code of each module, by its name below the package."""
    found = {}
    for folder in ("src", "csrc"):
        top = ROOT / folder / PACKAGE
        for file in sorted(top.rglob("*.py*")):
            if file.suffix not in (".py", ".pyx", ".pxd", ".pyi"):
                continue
            name = ".".join(file.relative_to(top).with_suffix("").parts)
            name = re.sub(r"(^|\.)__init__$", "", name)
            found.setdefault(name, []).append((file.suffix, file.read_text()))
    return found


def graph_of(modules):
    """For each module, those of this package that it imports."""
    graph = {}
    for name, files in modules.items():
        package = f"{PACKAGE}.{name}".rstrip(".")
        if name not in ("", "_clipping", "_profiling", "_lab"):
            package = package.rpartition(".")[0]
        graph[name] = set()
        for suffix, source in files:
            for imported in (
                cython_imports(source)
                if suffix in (".pyx", ".pxd")
                else python_imports(source, package)
            ):
                top, _, inner = imported.partition(".")
                # `from a.b import c`: c is a module, or a name of a.b's.
                while inner not in modules:
                    inner = inner.rpartition(".")[0]
                if top == PACKAGE and inner != name:
                    graph[name].add(inner)
    return graph


def level(name):
    """The floor of a module."""
    top = name.partition(".")[0]
    return FLOORS.get(top, 0 if top.startswith("_") else 2)


def faults(graph):
    """What is wrong with the imports, in words."""
    found = []
    for name, imported in graph.items():
        for other in sorted(imported):
            rooms = {each.partition(".")[0] for each in (name, other)}
            up = level(other) > level(name)
            apart = rooms == {"_clipping", "_profiling"}
            if name in ORDER and other in ORDER:
                up |= ORDER.index(other) > ORDER.index(name)
            if up or apart:
                found.append(f"{name or PACKAGE} imports {other or PACKAGE}")
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        found.append("a circle: " + ", ".join(map(str, error.args[1])))
    return found


def test_imports_run_downward():
    modules = sources()
    graph = graph_of(modules)
    # The parsers find what is known to be there.
    assert set(ORDER) <= graph.keys()
    assert graph["grad_clip"] >= {"mixin", "_clipping.step"}
    assert "_clipping.fsdp1" in graph["_clipping.parameters"]  # In a function.
    assert graph["_dispatch"] >= {"_args", "_record", "_describe"}
    assert "mixin" in graph[""]
    assert faults(graph) == []


@pytest.mark.parametrize(
    ("module", "line", "fault"),
    [
        ("_describe", f"import {PACKAGE}.mixin", "_describe imports mixin"),
        (
            "_clipping.local",
            f"def late():\n    from {PACKAGE}._clipping import step",
            "_clipping.local imports _clipping.step",
        ),
        (
            "_clipping.step",
            f"from {PACKAGE}.clip import clip_grad_norm_",
            "_clipping.step imports clip",
        ),
        (
            "_clipping.gradients",
            "from .._profiling.report import table",
            "_clipping.gradients imports _profiling.report",
        ),
        (
            "_profiling.report",
            f"from {PACKAGE} import HookContext",
            f"_profiling.report imports {PACKAGE}",
        ),
        (
            "_lab.patching",
            f"import {PACKAGE}.lab",
            "_lab.patching imports lab",
        ),
        ("mixin", "from ._lab import patching", "mixin imports _lab.patching"),
        ("_args", f"import {PACKAGE}", f"_args imports {PACKAGE}"),
        ("mixin", f"from {PACKAGE} import grad_clip", "a circle: "),
        (
            "_record",
            f"from {PACKAGE}._clipping.local cimport something",
            "_record imports _clipping.local",
        ),
        (
            "_args",
            f"    from {PACKAGE}._dispatch import (\n        a,\n        b)",
            "a circle: ",
        ),
    ],
)
def test_a_planted_import_is_found(module, line, fault):
    modules = sources()
    suffix, source = modules[module][-1]
    if suffix in (".pyx", ".pxd"):
        modules[module][-1] = (suffix, f"{source}\n{line}\n")
    else:
        modules[module].append((".py", line))
    assert any(each.startswith(fault) for each in faults(graph_of(modules)))


@pytest.mark.parametrize("planted", ["", "\n    import torch as t\n"])
def test_compiled_modules_do_not_import_torch(planted):
    sources = [
        file.read_text()
        for file in (ROOT / "csrc").rglob("*")
        if file.suffix in (".pyx", ".pxd", ".pxi")
    ]
    assert len(sources) >= 4
    imported = {
        each.partition(".")[0]
        for source in sources
        for each in cython_imports(source + planted)
    }
    assert {"cython", "copyreg", "robo_orchard_core"} <= imported
    assert ("torch" in imported) == bool(planted)
