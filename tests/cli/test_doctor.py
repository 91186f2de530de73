"""The doctor on healthy, absent and broken packages: the broken ones are made here and really imported."""

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from facts import states
from rich.console import Console

from crossdistill.cli import doctor, package_check
from crossdistill.cli.package_check import Finding, Package

SOXR = Package("soxr", "soxr", "audio", "resampling")
TIMEOUT_S = 60.0


def fake(folder: Path, module: str, code: str) -> Package:
    (folder / module).mkdir()
    (folder / module / "__init__.py").write_text(code)
    return Package(module, module, "timm", "tests")


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in front of the search path."""
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_a_package_that_imports_is_ok_with_its_version() -> None:
    finding = package_check.attempt(SOXR, TIMEOUT_S)
    assert (finding.state, finding.reason, finding.remedy) == ("ok", "", "")
    assert finding.version[0].isdigit()


def test_an_absent_package_says_its_install_command() -> None:
    absent = Package("no_such_package", "no-such-package", "timm", "tests")
    assert package_check.attempt(absent, TIMEOUT_S) == Finding(
        "no_such_package", "timm", "tests", "missing", "", "not installed", 'pip install "crossdistill[timm]"'
    )


def test_a_folder_that_has_the_name_is_no_package(path: Path) -> None:
    (path / "only_a_folder").mkdir()
    assert (
        package_check.attempt(Package("only_a_folder", "only-a-folder", "timm", "tests"), TIMEOUT_S).state == "missing"
    )


def test_an_import_that_raises_is_broken_with_its_words_and_stays_out_of_this_process(path: Path) -> None:
    package = fake(path, "fake_raises", "raise RuntimeError('operator fake::nms does not exist')\n")
    finding = package_check.attempt(package, TIMEOUT_S)
    assert finding.state == "broken"
    assert finding.reason == "RuntimeError: operator fake::nms does not exist"
    assert "pip install --force-reinstall fake_raises" in finding.remedy
    assert "fake_raises" not in sys.modules


def test_a_part_that_loads_late_is_tried_too(path: Path) -> None:
    package = fake(path, "fake_lazy", "def __getattr__(name):\n    raise ImportError('the model code is gone')\n")
    assert package_check.attempt(package, TIMEOUT_S).state == "ok"
    finding = package_check.attempt(replace(package, attribute="Model"), TIMEOUT_S)
    assert (finding.state, finding.reason) == ("broken", "ImportError: the model code is gone")


def test_a_package_that_lacks_another_names_it(path: Path) -> None:
    finding = package_check.attempt(fake(path, "fake_lacks", "import not_there_at_all.inner\n"), TIMEOUT_S)
    assert finding.reason == "ModuleNotFoundError: No module named 'not_there_at_all'"
    assert finding.remedy == "pip install not_there_at_all"


def test_the_package_that_fails_is_named_not_the_one_that_imports_it(path: Path) -> None:
    if importlib.util.find_spec("torchvision"):
        pytest.skip("a real torchvision is installed, and this test makes a false one")
    fake(path, "torchvision", "raise RuntimeError('operator torchvision::nms does not exist')\n")
    finding = package_check.attempt(fake(path, "fake_zoo", "import torchvision\n"), TIMEOUT_S)
    assert (
        finding.reason == "it imports torchvision, which fails: RuntimeError: operator torchvision::nms does not exist"
    )


@pytest.mark.skipif(sys.platform != "linux", reason="takes a shared library of Linux apart")
def test_a_library_built_for_something_else_names_what_it_misses(path: Path) -> None:
    package = fake(path, "fake_binary", "raise OSError('Could not load this library')\n")
    numpy = importlib.util.find_spec("numpy")
    assert numpy.origin is not None
    whole = next((Path(numpy.origin).parent / "random").glob("_common*.so")).read_bytes()
    # The same library, but it needs a CUDA library of the same length, which does not exist.
    assert whole.count(b"libc.so.6\0") == 1
    (path / "fake_binary" / "_C.so").write_bytes(whole.replace(b"libc.so.6\0", b"libcu.so1\0"))
    finding = package_check.attempt(package, TIMEOUT_S)
    assert finding.state == "broken"
    states(finding.reason, "libcu.so1", "CUDA")
    states(finding.remedy, "pip uninstall fake_binary", torch.__version__)


def test_an_unreadable_library_is_reported_in_the_loaders_words(path: Path) -> None:
    package = fake(path, "fake_torn", "raise OSError('Could not load this library')\n")
    (path / "fake_torn" / "_C.so").write_bytes(b"not a library")
    finding = package_check.attempt(package, TIMEOUT_S)
    states(finding.reason, "_C.so", "another torch")


def test_an_import_that_kills_the_process_is_broken(path: Path) -> None:
    package = fake(path, "fake_kills", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    assert package_check.attempt(package, TIMEOUT_S).reason == "importing it kills the process (SIGKILL)"
    package = fake(path, "fake_leaves", "import os\nos._exit(7)\n")
    assert package_check.attempt(package, TIMEOUT_S).reason == "importing it ends the process (exit status 7)"


def test_an_import_that_hangs_is_broken(path: Path) -> None:
    package = fake(path, "fake_hangs", "import time\ntime.sleep(60)\n")
    assert package_check.attempt(package, 1.0).reason == "importing it took more than 1 s"


def test_every_package_is_described_and_every_extra_exists(root: Path) -> None:
    text = (root / "pyproject.toml").read_text()
    names = [package.module for package in package_check.PACKAGES]
    assert len(set(names)) == len(names)
    for package in package_check.PACKAGES:
        assert package.purpose
        assert package.extra in {"core", ""} or f"\n{package.extra} = [" in text, package
        assert not package.extra or package.distribution.lower() in text.lower(), package


def test_diagnosis_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data" / "mnist").mkdir(parents=True)
    monkeypatch.setenv("CROSSDISTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CROSSDISTILL_DATA", str(tmp_path / "data"))
    diagnosis = doctor.examine([SOXR])
    assert diagnosis.faults == ()
    assert diagnosis.machine["cores"] >= 1
    assert diagnosis.machine["memory_bytes"] > 2**28
    assert diagnosis.machine["torch"][0].isdigit()
    assert diagnosis.machine["threads"] == 1
    assert "cpu" in diagnosis.machine["devices"]
    assert (diagnosis.cache.path, diagnosis.cache.writable, diagnosis.cache.found) == (
        str(tmp_path / "cache"), True, False,
    )  # fmt: skip
    assert not (tmp_path / "cache").exists(), "asking creates nothing"
    assert diagnosis.data.holds == ("mnist",)
    assert any("GPL-3" in line for line in diagnosis.licences)


def test_the_cache_is_listed_with_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from crossdistill.data.cache import keep

    monkeypatch.setenv("CROSSDISTILL_CACHE", str(tmp_path))
    kept = keep("example", {"rows": 3}, lambda folder: (folder / "rows.bin").write_bytes(b"x" * 1000) and None)
    cache = doctor.examine([]).cache
    assert cache.holds == (kept.name,)
    assert cache.size_bytes >= 1000


def test_faults_are_broken_packages_absent_core_ones_and_folders_that_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CROSSDISTILL_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setenv("CROSSDISTILL_DATA", str(tmp_path / "nowhere"))
    broken = Finding("one", "timm", "x", "broken", "1.0", "it fell", "mend it")
    absent = Finding("two", "core", "x", "missing", "", "not installed", "pip install crossdistill")
    optional = Finding("three", "timm", "x", "missing", "", "not installed", "pip install")
    diagnosis = replace(doctor.examine([]), packages=(broken, absent, optional))
    first, second, cache, data = diagnosis.faults
    states(first, "one", "broken", "it fell", "mend it")
    states(second, "two", "missing", "pip install crossdistill")
    states(cache, tmp_path / "file" / "cache", "CROSSDISTILL_CACHE")
    states(data, tmp_path / "nowhere", "CROSSDISTILL_DATA")


def test_text_and_json_say_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CROSSDISTILL_DATA", raising=False)
    bad = Finding("zoo", "timm", "teachers", "broken", "1.0", "it imports [torchvision]", "pip uninstall torchvision")
    gone = Finding("wandb", "wandb", "curves", "missing", "", "not installed", 'pip install "crossdistill[wandb]"')
    diagnosis = replace(doctor.examine([]), packages=(bad, gone))
    console = Console(width=120, no_color=True)
    with console.capture() as capture:
        console.print(doctor.render(diagnosis))
    text = capture.get()
    states(text, "zoo", "broken", "it imports [torchvision]", "pip uninstall torchvision", "GPL-3", "CROSSDISTILL_DATA")
    states(text, 'wandb: pip install "crossdistill[wandb]"')
    plain = json.loads(json.dumps(doctor.as_data(diagnosis)))
    assert plain["packages"][0]["state"] == "broken"
    assert plain["faults"] == list(diagnosis.faults)
    assert plain["data"] is None
    healthy = replace(diagnosis, packages=())
    with console.capture() as capture:
        console.print(doctor.render(healthy))
    states(capture.get(), "no faults")
