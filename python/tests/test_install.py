"""Getting it running: enabled, too late, without what it needs, by the environment alone."""

import json
import os
import subprocess
import sys
import time

from helpers import run, run_json

QUICK = {"STRATALLOC_TEST": "1"}

CAUGHT = """
import json, stratalloc
try:
    print(json.dumps(["enabled", stratalloc.torch.enable({arguments})]))
except Exception as error:
    print(json.dumps([type(error).__name__, str(error)]))
"""


def outcome(arguments="fallback='never'", env=None, before=""):
    return run_json(before + CAUGHT.format(arguments=arguments), allocator="none", env=env)


def test_enable_says_which_way():
    assert outcome() == ["enabled", "extension"]
    assert outcome("fallback='only'") == ["enabled", "pluggable"]


# Gotcha 1.
def test_too_late():
    kind, text = outcome(before="import torch; torch.cuda.init()\n")
    assert kind == "EnabledTooLate" and "before anything uses CUDA" in text


def test_twice_is_too_late():
    kind, text = outcome(before="import stratalloc; stratalloc.torch.enable(fallback='never')\n")
    assert kind == "EnabledTooLate" and "already" in text


# The C++ side has the last word: Python may not know that CUDA was used.
def test_too_late_from_below():
    kind, text = outcome(before="import torch; torch.cuda.init(); torch.cuda.is_initialized = lambda: False\n")
    assert kind == "EnabledTooLate" and "initialised already" in text


def test_another_version_of_torch():
    kind, text = outcome(before="import torch; torch.__version__ = '2.3.1'\n")
    assert kind == "UnsupportedTorch" and "2.3.1" in text and "2.15" in text


def test_torch_is_not_installed(tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('no such thing')")
    kind, text = outcome(env={"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"})
    assert kind == "UnsupportedTorch" and "no such thing" in text


def test_no_library(tmp_path):
    kind, text = outcome(env={"STRATALLOC_LIBRARY": str(tmp_path / "nothing.so")})
    assert kind == "LibraryNotFound" and "nothing.so" in text
    kind, text = outcome(env={"STRATALLOC_LIBRARY": "libc.so.6"})
    assert kind == "LibraryNotFound" and "libc.so.6" in text


def test_no_cuda():
    kind, text = outcome(env={"CUDA_VISIBLE_DEVICES": ""})
    assert kind == "CudaMissing" and "no CUDA device" in text
    kind, text = outcome(before="import torch; torch.version.cuda = None\n")
    assert kind == "CudaMissing" and "without CUDA" in text


def test_a_configuration_with_a_mistake():
    kind, text = outcome("'limt:0.5', fallback='never'")
    assert kind == "InvalidConfig" and "limt" in text
    kind, text = outcome("'limit:7.5', fallback='never'")
    assert kind == "InvalidConfig"
    kind, _ = outcome("3, fallback='never'")
    assert kind == "TypeError"
    kind, text = outcome("fallback='perhaps'")
    assert kind == "ValueError" and "perhaps" in text


def test_a_mistake_in_the_environment_is_one_line():
    result = run(
        "import torch; torch.empty(10, device='cuda'); print('went on')", env={"STRATALLOC_CONF": "limt:0.5"}
    )
    assert "went on" in result.stdout
    assert len([line for line in result.stderr.splitlines() if "limt" in line]) == 1


def test_no_compiler(tmp_path):
    hidden = {"STRATALLOC_CACHE": str(tmp_path), "CXX": "no-such-compiler"}
    kind, text = outcome(env=hidden)
    assert kind == "CompilerMissing" and "no-such-compiler" in text
    assert outcome("fallback='auto'", env=hidden) == ["enabled", "pluggable"]
    result = run("import stratalloc; stratalloc.torch.enable()", allocator="none", env=hidden)
    assert "memory_stats" in result.stderr and "CompilerMissing" in result.stderr


def test_no_headers(tmp_path):
    kind, text = outcome(env={"STRATALLOC_CACHE": str(tmp_path), "STRATALLOC_CUDA_INCLUDE": str(tmp_path)})
    assert kind == "CompilerMissing" and "nvidia-cuda-runtime" in text


def test_a_compiler_that_fails(tmp_path):
    bad = tmp_path / "bad-cxx"
    bad.write_text("#!/bin/sh\necho this compiler is broken >&2\nexit 3\n")
    bad.chmod(0o755)
    kind, text = outcome(env={"STRATALLOC_CACHE": str(tmp_path / "cache"), "CXX": str(bad)})
    assert kind == "CompilationFailed" and "this compiler is broken" in text and "status 3" in text


def test_a_compiled_file_that_is_none(tmp_path):
    bad = tmp_path / "bad-cxx"
    # What comes after -o.
    bad.write_text('#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\necho rubbish > "$2"\n')
    bad.chmod(0o755)
    env = {"STRATALLOC_CACHE": str(tmp_path / "cache"), "CXX": str(bad)}
    kind, text = outcome(env=env)
    assert kind == "CompilationFailed" and "cannot be loaded" in text and "stratalloc_torch.so" in text
    assert outcome("fallback='auto'", env=env) == ["enabled", "pluggable"]


def test_a_cache_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    kind, text = outcome(env={"STRATALLOC_CACHE": str(tmp_path / "file" / "cache")})
    assert kind == "CompilerMissing" and "STRATALLOC_CACHE" in text


def test_processes_compile_once(tmp_path):
    counter = tmp_path / "count"
    slow = tmp_path / "cxx"
    slow.write_text(f'#!/bin/sh\necho x >> {counter}\nexec c++ "$@"\n')
    slow.chmod(0o755)
    env = {**os.environ, "STRATALLOC_CACHE": str(tmp_path / "cache"), "CXX": str(slow)}
    code = "import stratalloc; print(stratalloc.torch.enable(fallback='never'))"
    both = [subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [p.communicate(timeout=300)[0].strip() for p in both] == ["extension", "extension"]
    assert counter.read_text().count("x") == 1
    start = time.monotonic()
    assert outcome(env={"STRATALLOC_CACHE": str(tmp_path / "cache"), "CXX": "none"}) == ["enabled", "extension"]
    assert time.monotonic() - start < 60


SCRIPT = """
import sys, json, torch
x = torch.empty(1000, device="cuda")
print(json.dumps([torch.cuda.get_allocator_backend(), sys.argv[1:], __name__, torch.cuda.memory_stats()["allocation.all.current"]]))
"""


def stratalloc_run(*arguments, env=None, ok=True):
    command = [sys.executable, "-m", "stratalloc", "run", *map(str, arguments)]
    return run("", allocator="none", interpreter=command, env=env, ok=ok)


def test_a_script_runs_unchanged(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    result = stratalloc_run("--fallback", "never", script, "one", "--two")
    assert json.loads(result.stdout) == ["stratalloc", ["one", "--two"], "__main__", 1]
    result = stratalloc_run("--conf", "limit:0.5", script)
    assert json.loads(result.stdout)[0] == "stratalloc"


def test_a_module_runs_unchanged(tmp_path):
    (tmp_path / "some_module.py").write_text(SCRIPT)
    result = stratalloc_run("-m", "some_module", "three", env={"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"})
    assert json.loads(result.stdout)[:3] == ["stratalloc", ["three"], "__main__"]


def test_children_are_on_it_too(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    parent = tmp_path / "parent.py"
    parent.write_text(f"import subprocess, sys; subprocess.run([sys.executable, {str(script)!r}], check=True)")
    assert json.loads(stratalloc_run(parent).stdout)[0] == "stratalloc"


def test_a_program_without_torch_runs_too(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("print('no torch here')")
    assert stratalloc_run(script).stdout == "no torch here\n"


def test_a_sitecustomize_that_is_there_already_is_run(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("print('theirs')")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    lines = stratalloc_run(script, env={"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}).stdout.splitlines()
    assert "theirs" in lines and json.loads(lines[-1])[0] == "stratalloc"


# As transformers and accelerate do, to see whether torch is installed.
def test_who_asks_for_torch_before_the_import_changes_nothing(tmp_path):
    script = tmp_path / "script.py"
    asks = "import importlib.util; assert importlib.util.find_spec('torch').origin.endswith('__init__.py')\n"
    script.write_text(asks * 2 + SCRIPT + asks + "print(torch.__spec__.loader.__class__.__name__, torch.__loader__ is torch.__spec__.loader)")
    lines = stratalloc_run(script).stdout.splitlines()
    assert json.loads(lines[0])[0] == "stratalloc" and lines[1] == "SourceFileLoader True"


def test_what_their_sitecustomize_does_to_the_path_stays(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.path.append('/added/by/theirs')")
    script = tmp_path / "script.py"
    script.write_text("import sys; print('/added/by/theirs' in sys.path, any(entry.endswith('_site') for entry in sys.path))")
    result = stratalloc_run(script, env={"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"})
    assert result.stdout.split() == ["True", "False"]


def test_a_sitecustomize_that_is_broken_is_told(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import no_such_module_at_all")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    result = stratalloc_run(script, env={"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"})
    assert "no_such_module_at_all" in result.stderr
    assert json.loads(result.stdout.splitlines()[-1])[0] == "stratalloc"


def test_run_says_what_is_wrong(tmp_path):
    result = stratalloc_run(ok=False)
    assert result.returncode == 2 and "name a script" in result.stderr
    result = stratalloc_run(tmp_path / "absent.py", ok=False)
    assert result.returncode == 2 and "absent.py" in result.stderr
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    result = stratalloc_run(script, env={"STRATALLOC_LIBRARY": "/no/such/library.so"}, ok=False)
    assert result.returncode == 1 and "LibraryNotFound" in result.stderr
    result = stratalloc_run("--print", script)
    assert "STRATALLOC_TORCH=auto" in result.stdout


def test_doctor():
    command = [sys.executable, "-m", "stratalloc", "doctor"]
    result = run("", allocator="none", interpreter=command)
    assert "MISSING" not in result.stdout and "ok       extension" in result.stdout
    result = run("", allocator="none", interpreter=command, env={"STRATALLOC_LIBRARY": "/no/such.so"}, ok=False)
    assert result.returncode == 1 and "MISSING  library" in result.stdout


def test_capabilities():
    import stratalloc

    full, less = stratalloc.torch.capabilities("extension"), stratalloc.torch.capabilities("pluggable")
    assert full.keys() == less.keys()
    assert full["memory_stats"] == "works" and "raises" in less["memory_stats"]
    assert stratalloc.torch.enabled() == "extension"
