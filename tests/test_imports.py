"""The shape of the house, kept by a test: who may import whom (ARCHITECTURE.md), and how long things may be."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("stream", "fleet", "books", "watch")  # of the gateway; they do not know each other
PRODUCT = ("guards", "gateway", "vllm_plugin")
TREES = {
    path.relative_to(ROOT): ast.parse(path.read_text("utf-8"))
    for room in PRODUCT
    for path in (ROOT / room).rglob("*.py")
}
EVERYTHING = [pytest.param(path, id=str(path)) for path in sorted(TREES)]


def imports(path: Path) -> set[str]:
    """Every module that a file imports, also inside functions and for type checking; relative ones made absolute."""
    return found_in(TREES[path], path)


def found_in(tree: ast.AST, path: Path) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = ".".join(path.parts[: len(path.parts) - node.level]) + "." if node.level else ""
            found |= {f"{package}{node.module or ''}.{alias.name}" for alias in node.names}
    return found


def at_import(path: Path) -> set[str]:
    """Those that are imported as soon as the file is: neither inside functions nor for type checking."""
    tree = ast.Module([node for node in TREES[path].body if isinstance(node, ast.Import | ast.ImportFrom)], [])
    return found_in(tree, path)


def of(path: Path, *packages: str) -> set[str]:
    """Those of a file's imports that are in these packages."""
    return {name for name in imports(path) if any(f"{name}.".startswith(f"{package}.") for package in packages)}


def room(path: Path) -> str:
    """The room of a file in the gateway, the file's own name where it has none."""
    return path.parts[1].removesuffix(".py")


def test_the_tree_is_really_looked_at():
    """The test reads this very tree, and sees an import where there is one."""
    assert "guards.budget.Verdict" in imports(Path("gateway/stream/relay.py"))
    assert len(TREES) > 40


@pytest.mark.parametrize("path", EVERYTHING)
def test_the_product_imports_neither_tests_nor_load_tests(path):
    """What is shipped does not need what is not."""
    assert not of(path, "tests", "loadtests")


@pytest.mark.parametrize("path", [p for p in EVERYTHING if p.values[0].parts[0] == "guards"])
def test_guards_know_the_standard_library_and_pybreaker(path):
    """Decisions are pure: no framework, nothing of the gateway, no asyncio, no sockets."""
    allowed = (*sys.stdlib_module_names, "guards", "pybreaker")

    assert imports(path) == of(path, *allowed)
    assert not of(path, "asyncio", "socket", "threading", "http", "urllib", "subprocess", "selectors")


@pytest.mark.parametrize("path", [p for p in EVERYTHING if p.values[0].parts[0] == "gateway"])
def test_the_gateways_rooms_know_only_whom_they_may(path):
    """app → http → flow → stream, fleet, books, watch; those four know of each other nothing, `local` nobody."""
    here = room(path)
    if not (here == "http" or path == Path("gateway/app.py")):
        assert not of(path, "aiohttp")
    if path != Path("gateway/stream/upstream.py"):
        assert not of(path, "httptools")
    if here == "local":
        assert of(path, "gateway") == of(path, "gateway.local")
        assert not of(path, "guards")
    if here in ROOMS:
        assert of(path, "gateway") == of(path, f"gateway.{here}", "gateway.config")
    if here == "http":
        assert not of(path, "gateway.app", "gateway.cli", "gateway.local")
    if here == "flow":
        assert not of(path, "gateway.app", "gateway.cli", "gateway.http", "gateway.local")
    if here not in ("doctor", "cli_doctor"):
        assert not of(path, "gateway.doctor")
    if here == "doctor" and path.stem in ("facts", "servers", "families", "home"):
        assert not of(path, "asyncio", "socket", "time", "os", "pathlib")
    if path != Path("gateway/local/tiny_model.py"):  # runs in vLLM's own environment
        assert not of(path, "vllm", "torch", "transformers", "vllm_plugin")


@pytest.mark.parametrize("path", [p for p in EVERYTHING if p.values[0].parts[0] == "vllm_plugin"])
def test_the_plugin_knows_nothing_of_the_gateway(path):
    """It lives in vLLM's environment, where the gateway is not."""
    assert not of(path, "gateway", "guards")


@pytest.mark.parametrize("path", [p for p in EVERYTHING if p.values[0].parts[:2] == ("vllm_plugin", "digest")])
def test_a_digest_needs_no_vllm_and_what_is_heavy_only_where_it_is_used(path):
    """numpy and BLAKE3 at import; numba with its LLVM, torch and triton each in the file that is named for it."""
    allowed = (*sys.stdlib_module_names, "numpy", "blake3", "vllm_plugin.digest")
    numba = dict.fromkeys(("numba_code", "numba_copies", "numba_sums"), ("numba", "llvmlite"))
    engine = {**numba, "torch_sums": ("torch",), "triton_sums": ("torch", "triton")}.get(path.stem, ())
    assert at_import(path) == of(path, *allowed, *engine) & at_import(path)
    assert not {name for name in at_import(path) if any(word.endswith("_sums") for word in name.split("."))}
    assert imports(path) == of(path, *allowed, *engine, "torch")


DECIDING = (
    "page", "settings", "refusals", "gate", "plans", "residents", "scrub", "schedule", "scheduler_side", "known",
    "strangers", "companions", "versions", "wrapping", "prefix", "status", "whose", "progress", "lookups", "loads",
    "kept", "limits",
)  # fmt: skip
TOUCHING = (
    "compat", "connector", "telemetry", "register", "front",
    "canary", "emission", "found", "generators", "history",  # of restore/: each of them of one of vLLM's processes
)  # fmt: skip


@pytest.mark.parametrize("path", [p for p in EVERYTHING if p.values[0].parts[0] == "vllm_plugin"])
def test_only_what_touches_vllm_knows_it(path):
    """Decisions are made without it, and without torch; what changes with its versions is in one file."""
    if path.stem in DECIDING:
        assert imports(path) == of(path, *sys.stdlib_module_names, "vllm_plugin")
    if path.stem not in TOUCHING:
        assert not of(path, "vllm")


def test_the_entry_point_imports_nothing():
    """vLLM calls it before it looks through all modules, and falls over those of numba."""
    assert at_import(Path("vllm_plugin/register.py")) == set()


@pytest.mark.parametrize("path", [p for p in EVERYTHING if p.values[0].parts[:2] == ("vllm_plugin", "store")])
def test_a_store_needs_neither_vllm_nor_torch(path):
    """The standard library, lmdb or redis and BLAKE3, and msgspec; its commands what the command line has."""
    engine = ("redis", "blake3") if path.stem.startswith("redis_") else ("lmdb",)
    allowed = (*sys.stdlib_module_names, *engine, "msgspec", "vllm_plugin.store")
    shown = ("typer", "rich") if path.stem == "commands" else ()
    assert imports(path) == of(path, *allowed, *shown)


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1


@pytest.mark.parametrize("path", EVERYTHING)
def test_functions_fit_the_screen(path):
    """No function is longer than 70 lines."""
    assert {node.name: lines(node) for node in functions(TREES[path]) if lines(node) > 70} == {}


@pytest.mark.parametrize("path", EVERYTHING)
def test_modules_hold_one_noun(path):
    """No module is longer than 450 lines."""
    assert len((ROOT / path).read_text("utf-8").splitlines()) <= 450


def test_the_flow_fits_one_screen():
    """What happens to a request can be read at a glance: the file within 100 lines, `serve` within 40."""
    path = Path("gateway/flow.py")
    (serve,) = (node for node in functions(TREES[path]) if node.name == "serve")

    assert len((ROOT / path).read_text("utf-8").splitlines()) <= 100
    assert lines(serve) <= 40
