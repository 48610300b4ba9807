"""The rule of the house, read from the syntax trees: who may import whom, and by which names.

Each part of the rule is a function that yields what breaks it below a root, a line each.
"""

import ast
import subprocess
import sys
from functools import cache

FLOORS = (
    ("ground",),
    ("models",),
    ("atoms",),
    ("layers",),
    ("files",),
    ("adapters",),
    ("diffusion",),
    ("training", "evaluation"),
    ("classifiers",),
    ("bench",),
    ("cli",),
    ("__main__",),
)
"""Packages of `sdatoms`, lowest first; those of one floor do not know each other."""

TABS = (
    ("ground",),
    ("shared",),
    ("studio",),
    ("queue",),
    ("generate", "atoms"),
    ("train",),
    ("runs",),
    ("app",),
    ("__main__",),
)
"""Packages of `sdatoms_app`, in the same way; `app` joins them."""

GROUND = {
    "sdatoms": {"errors", "fingerprint", "pictures", "settings", "storage", "version"},
    "sdatoms_app": {"security", "style"},
}


HEAVY = ("diffusers", "transformers", "peft", "gradio", "accelerate")
"""What `import sdatoms` does not bring."""


def list_modules(root):
    """Dotted name → file, of both packages."""
    found = {}
    for folder in (root / "sdatoms", root / "app" / "sdatoms_app"):
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder.parent).with_suffix("").parts
            found[".".join(p for p in parts if p != "__init__")] = path
    return found


@cache
def read_tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def list_imports(name, path, modules):
    """`(line, module, imported name or None)` of every import of ours, at any depth."""
    for node in ast.walk(read_tree(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] in GROUND:
                    yield node.lineno, alias.name, None
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name}:{node.lineno} is a relative import"
            if (node.module or "").split(".")[0] in GROUND:
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    if inner in modules:
                        yield node.lineno, inner, None
                    else:
                        yield node.lineno, node.module, alias.name


def list_floors(module):
    """The floors of the package that the module belongs to."""
    return FLOORS if module.partition(".")[0] == "sdatoms" else TABS


def place(module):
    """Room and rank of a module; the rank is None where it stands on no floor."""
    top, _, rest = module.partition(".")
    room = rest.partition(".")[0]
    room = "ground" if room in GROUND[top] else room
    ranks = {name: rank for rank, floor in enumerate(list_floors(module)) for name in floor}
    return room, ranks.get(room)


def find_wrong_imports(root):
    """Imports that go up, sideways, or out of the library into the app."""
    modules = list_modules(root)
    for name, path in modules.items():
        if name in GROUND:
            continue
        room, rank = place(name)
        top = name.partition(".")[0]
        if rank is None:
            yield f"{name} stands on no floor"
            continue
        for line, module, _ in list_imports(name, path, modules):
            other = module.partition(".")[0]
            if other != top:
                if top == "sdatoms" and not name.startswith("sdatoms.cli"):
                    yield f"{name}:{line} imports the app"
                continue
            if module == top:
                yield f"{name}:{line} imports the whole package"
                continue
            their_room, their_rank = place(module)
            if their_rank is None or not (their_rank < rank or their_room == room):
                yield f"{name}:{line} imports {module}, which is not below it"


def find_circles(root):
    """Modules that import each other, however far around."""
    modules = list_modules(root)
    arrows = {
        name: {m for _, m, _ in list_imports(name, path, modules) if m in modules and m != name}
        for name, path in modules.items()
        if name not in GROUND
    }
    state = {}

    def visit(name, way):
        state[name] = "open"
        for other in sorted(arrows.get(name, ())):
            if state.get(other) == "open":
                yield " → ".join([*way[way.index(other) :], other])
            elif other not in state:
                yield from visit(other, [*way, other])
        state[name] = "done"

    for name in arrows:
        if name not in state:
            yield from visit(name, [name])


def read_all(path):
    """A module's `__all__`; None where it has none."""
    for node in read_tree(path).body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if any(isinstance(t, ast.Name) and t.id == "__all__" for t in targets):
            return set(ast.literal_eval(node.value))
    return None


def find_private_imports(root):
    """Imported names that do not stand in their module's `__all__`, in scripts too."""
    modules = list_modules(root)
    public = {name: read_all(path) for name, path in modules.items()}
    scripts = {f"scripts.{path.stem}": path for path in sorted((root / "scripts").rglob("*.py"))}
    for name, path in (modules | scripts).items():
        for line, module, imported in list_imports(name, path, modules):
            if imported and imported not in (public.get(module) or ()):
                yield f"{name}:{line} imports {imported}, which {module}.__all__ does not name"


def find_false_fronts(root):
    """Public names that a module only hands on; the packages' own front doors do so openly."""
    for name, path in list_modules(root).items():
        if name in GROUND or name.endswith("__main__"):
            continue
        imported = {
            alias.asname or alias.name
            for node in read_tree(path).body
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in node.names
        }
        for handed_on in sorted((read_all(path) or set()) & imported):
            yield f"{name}.__all__ names {handed_on}, which it did not define"


def find_shadows(root):
    """Modules that a public function of their package hides, as `import a.b as c` would find."""
    modules = list_modules(root)
    public = {name: read_all(path) or set() for name, path in modules.items()}
    for name in modules:
        package, _, last = name.rpartition(".")
        if last in public.get(package, ()):
            yield f"{name} is hidden by {package}.{last}"


def find_poor_openings(root):
    """Modules that do not say in one line what they are for, and packages that do not say which
    floor they import."""
    for name, path in list_modules(root).items():
        line = ((ast.get_docstring(read_tree(path)) or "").splitlines() or [""])[0].rstrip()
        if not line.endswith((".", ":", "…", ",")):
            yield f"{name} does not say what it is for"
        rank = None if name in GROUND else place(name)[1]
        if path.name == "__init__.py" and rank:
            below = list_floors(name)[rank - 1]
            wanted = f"imports {', '.join(below)} and below"
            wanted = "imports the ground" if below == ("ground",) else wanted
            if wanted not in line:
                yield f"{name} does not say that it {wanted}"


def find_long_scripts(root):
    """Scripts over 80 lines, and whatever imports a script."""
    scripts = {path.stem: path for path in sorted((root / "scripts").glob("*.py"))}
    for stem, path in scripts.items():
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > 80:
            yield f"scripts/{stem}.py has {lines} lines"
    files = {f"scripts/{stem}.py": path for stem, path in scripts.items()}
    for name, path in (files | list_modules(root)).items():
        for node in ast.walk(read_tree(path)):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names = [n.removeprefix("scripts.") for n in names]
            yield from (f"{name} imports scripts/{n}.py" for n in names if n in scripts)


def find_heavy_imports(root):
    """Packages that `import sdatoms` brings although most of what it does needs none of them, and
    whatever in the library imports gradio."""
    code = f"import sys, sdatoms; print(*(name for name in {HEAVY} if name in sys.modules))"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    yield from (f"import sdatoms brings {name}" for name in run.stdout.split())
    for name, path in list_modules(root).items():
        for node in ast.walk(read_tree(path)) if name.startswith("sdatoms.") else ():
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(n.split(".")[0] == "gradio" for n in names):
                yield f"{name} imports gradio"


def find_stray_tests(root):
    """Test files that bear the name of no module of the package whose folder they lie in."""
    modules = list_modules(root)
    folders = {f"sdatoms.{name}": root / "tests" / name for floor in FLOORS for name in floor}
    folders |= {
        f"sdatoms_app.{name}": root / "tests" / "app" / name for tab in TABS for name in tab
    }
    folders["sdatoms"] = root / "tests"
    for package, folder in folders.items():
        for path in sorted(folder.glob("test_*.py")):
            name = f"{package}.{path.stem.removeprefix('test_')}"
            if name not in modules and path.name != "test_architecture.py":
                yield f"{path.relative_to(root)} tests no module: there is no {name}"


RULE = {
    "imports go down": find_wrong_imports,
    "no circle": find_circles,
    "imported names are public": find_private_imports,
    "no module hands on another's names": find_false_fronts,
    "no module is hidden by a function": find_shadows,
    "every module says what it is for": find_poor_openings,
    "scripts are short and imported by nothing": find_long_scripts,
    "importing the package brings nothing heavy, and the library no gradio": find_heavy_imports,
    "tests mirror the packages": find_stray_tests,
}
"""What the house keeps → what yields the breaks."""
