"""The house as a whole: sizes, empty `__init__` files, what an import costs, and whose names these are."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("state", "policies", "tools", "agents", "orchestrator", "serving", "console", "evals", "examples")
MODULES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
MAX_LINES = 600

IMPORT_ALL = """
import importlib, json, pathlib, sys, time
start = time.perf_counter()
for folder in sys.argv[1:]:
    for path in sorted(pathlib.Path(folder).rglob("*.py")):
        importlib.import_module(".".join(path.with_suffix("").parts).removesuffix(".__init__"))
imported = time.perf_counter()
from evals.world.platform import build, example_spec
from evals.world.world import World
world = World(pathlib.Path("unused"))
world.add(example_spec())
build(world)
started = time.perf_counter()
seconds = {"import_seconds": imported - start, "world_seconds": started - imported}
print(json.dumps({**seconds, "modules": sorted(sys.modules)}))
"""


def names(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


def test_no_module_has_600_lines_or_more() -> None:
    long = [path for path in MODULES if len(path.read_text().splitlines()) >= MAX_LINES]

    assert names(long) == []


def test_an_init_file_holds_a_docstring_and_nothing_else() -> None:
    inits = [path for path in MODULES if path.name == "__init__.py"]
    bodies = {path: ast.parse(path.read_text()).body for path in inits}

    assert inits
    assert (
        names([p for p, body in bodies.items() if len(body) != 1 or ast.get_docstring(ast.Module(body, [])) is None])
        == []
    )


def test_every_folder_with_modules_is_a_package_and_no_folder_of_tests_is() -> None:
    bare = {path.parent for path in MODULES if not (path.parent / "__init__.py").exists()}

    assert names(sorted(bare)) == []
    assert names(sorted((ROOT / "tests").rglob("__init__.py"))) == []


def test_the_simulated_world_and_the_orchestrator_import_no_heavy_client(
    record_property: Callable[[str, object], None],
) -> None:
    child = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, "evals/world", "orchestrator", "agents"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    seen = json.loads(child.stdout)
    record_property("import_seconds", seen["import_seconds"])
    record_property("world_seconds", seen["world_seconds"])

    loaded = {name.partition(".")[0] for name in seen["modules"]}
    assert "polars" in loaded
    assert loaded & {"mlflow", "kfp", "onnxruntime", "sklearn", "skl2onnx", "kubernetes"} == set()
    # Its special functions are enough, and the package takes a third of the time that all the others take.
    assert "scipy.stats" not in seen["modules"]


def test_no_other_distribution_claims_our_names() -> None:
    owners = packages_distributions()

    claimed = {folder: sorted(set(owners.get(folder, [])) - {"steadyhand"}) for folder in FOLDERS}
    assert {folder: others for folder, others in claimed.items() if others} == {}
