"""The rule of the house, read from the syntax trees: who may import whom, and by which names."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

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


def list_modules(root=ROOT):
    """Dotted name → file, of both packages."""
    found = {}
    for folder in (root / "sdatoms", root / "app" / "sdatoms_app"):
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder.parent).with_suffix("").parts
            found[".".join(p for p in parts if p != "__init__")] = path
    return found


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


def place(module):
    """Package and rank of a module; the rank of a package's own name is that of all above."""
    top, _, rest = module.partition(".")
    room = rest.partition(".")[0]
    room = "ground" if room in GROUND[top] else room
    floors = FLOORS if top == "sdatoms" else TABS
    ranks = {name: rank for rank, floor in enumerate(floors) for name in floor}
    return room, ranks.get(room)


def find_wrong_imports(modules):
    """Imports that go up, sideways, or out of the library into the app."""
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
            if module == "sdatoms":
                yield f"{name}:{line} imports the whole package"
                continue
            their_room, their_rank = place(module)
            if their_rank is None or not (their_rank < rank or their_room == room):
                yield f"{name}:{line} imports {module}, which is not below it"


def find_circles(modules):
    """Modules of one package that import each other, however far around."""
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


def find_private_imports(modules, files):
    """Imported names that do not stand in their module's `__all__`."""
    public = {name: read_all(path) for name, path in modules.items()}
    for name, path in files.items():
        for line, module, imported in list_imports(name, path, modules):
            if imported and imported not in (public.get(module) or ()):
                yield f"{name}:{line} imports {imported}, which {module}.__all__ does not name"


def find_false_fronts(modules):
    """Public names that a module only hands on; the packages' own front doors do so openly."""
    for name, path in modules.items():
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


def find_shadows(modules):
    """Modules that a public function of their package hides, as `import a.b as c` would find."""
    public = {name: read_all(path) or set() for name, path in modules.items()}
    for name in modules:
        package, _, last = name.rpartition(".")
        if last in public.get(package, ()):
            yield f"{name} is hidden by {package}.{last}"


def find_poor_openings(modules):
    """Modules and packages that do not say in one line what they are for."""
    for name, path in modules.items():
        text = ast.get_docstring(read_tree(path)) or ""
        if not text.splitlines() or not text.splitlines()[0].rstrip().endswith(
            (".", ":", "…", ",")
        ):
            yield f"{name} does not say what it is for"
        if path.name == "__init__.py" and name not in GROUND and "import" not in text:
            yield f"{name} does not say what it may import"


def find_long_scripts(root=ROOT):
    """Scripts over 80 lines, and scripts that import another."""
    scripts = {path.stem: path for path in sorted((root / "scripts").glob("*.py"))}
    for stem, path in scripts.items():
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > 80:
            yield f"scripts/{stem}.py has {lines} lines"
        for node in ast.walk(read_tree(path)):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            yield from (f"scripts/{stem}.py imports {n}.py" for n in names if n in scripts)


def check(found):
    found = list(found)
    assert not found, "\n".join(found)


def test_packages_import_only_lower_floors():
    check(find_wrong_imports(list_modules()))


def test_no_modules_import_each_other_in_a_circle():
    check(find_circles(list_modules()))


def test_every_imported_name_is_public_in_its_module():
    modules = list_modules()
    scripts = {f"scripts.{p.stem}": p for p in sorted((ROOT / "scripts").rglob("*.py"))}
    check(find_private_imports(modules, modules | scripts))


def test_no_module_hands_on_the_names_of_another():
    check(find_false_fronts(list_modules()))


def test_no_module_is_hidden_by_a_public_function():
    check(find_shadows(list_modules()))


def test_every_module_says_what_it_is_for():
    check(find_poor_openings(list_modules()))


def test_scripts_are_short_and_import_no_script():
    check(find_long_scripts())


@pytest.mark.parametrize("heavy", ["diffusers", "transformers", "peft", "gradio", "accelerate"])
def test_importing_the_package_brings_nothing_heavy(heavy):
    code = f"import sys, sdatoms, json; print(json.dumps({heavy!r} in sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(run.stdout) is False
