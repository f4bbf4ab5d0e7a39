"""The package's modules import downward only, and without a circle."""

import re
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = "robo_orchard_fasthooks"
# Other private modules, compiled ones among them, are on floor 0, other public
# ones on floor 4.
FLOORS = {
    **{"_clipping": 1, "_profiling": 1, "_cuda_graph": 2, "_stepping": 3},
    **{"_lab": 5, "lab": 6, "__main__": 6, "": 6},
}
IMPORT = re.compile(
    r"^[ \t]*(?:from[ \t]+(\S+)[ \t]+c?import[ \t]*(\([^)]*\)|[^#\n]+)"
    r"|c?import[ \t]+([\w.]+))",
    re.M,
)


def imports_of(source):
    """The modules that Python or Cython imports, also within functions."""
    code = re.sub(r'"""[\s\S]*?"""', "", source)
    for base, names, module in IMPORT.findall(code):
        if module:
            yield module
        if base.startswith("."):  # Only the package's own __init__ has these.
            base = f"{PACKAGE}{base}".rstrip(".")
        for name in re.findall(r"(\w+)(?: as \w+)?", names):
            yield f"{base}.{name}"


def imports():
    """What each module imports, by its name below the package."""
    found = {}
    for folder in ("src", "csrc"):
        top = ROOT / folder / PACKAGE
        for file in sorted(top.rglob("*.py*")):
            parts = file.relative_to(top).with_suffix("").parts
            name = ".".join(parts).removesuffix("__init__").rstrip(".")
            imported = found.setdefault(name, set())
            if file.suffix in (".py", ".pyi", ".pyx", ".pxd"):
                imported.update(imports_of(file.read_text()))
    return found


IMPORTS = imports()


def within_the_package(name):
    """The modules of this package that a module imports."""
    for imported in IMPORTS[name]:
        top, _, inner = imported.partition(".")
        # `from a.b import c`: c is a module, or a name of a.b's.
        while inner not in IMPORTS:
            inner = inner.rpartition(".")[0]
        if top == PACKAGE and inner != name:
            yield inner


def floor(name):
    """The floor of a module."""
    top = name.partition(".")[0]
    return FLOORS.get(top, 0 if top.startswith("_") else 4)


def test_imports_run_downward_without_a_circle():
    graph = {name: {*within_the_package(name)} for name in IMPORTS}
    # The parsers find what is known to be there.
    assert "mixin" in graph["grad_clip"] and "_args" in graph["_dispatch"]
    upward = [
        f"{name or PACKAGE} imports {other or PACKAGE}"
        for name, others in graph.items()
        for other in others
        if floor(other) > floor(name)
    ]
    assert upward == []
    TopologicalSorter(graph).prepare()


def test_gradients_are_clipped_without_accelerate():
    names = [name for name in IMPORTS if name.startswith("_clipping")]
    tops = {i.partition(".")[0] for name in names for i in IMPORTS[name]}
    assert "torch" in tops and "accelerate" not in tops


def test_compiled_modules_do_not_import_torch():
    files = [file for file in (ROOT / "csrc").rglob("*.p[yx][xdi]")]
    tops = {
        imported.partition(".")[0]
        for file in files
        for imported in imports_of(file.read_text())
    }
    assert "robo_orchard_core" in tops and "torch" not in tops
