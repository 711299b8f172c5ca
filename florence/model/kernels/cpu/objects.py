"""Kernels as object code: compiled by numba, loaded by LLVM.

Compiling takes seconds, loading milliseconds, so object code is cached on disk for later processes, under a
name that depends on the source code, the libraries and the processor. Knows how a kernel is called, not what
it computes. Imports numba only to compile.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from llvmlite import binding

from florence.model.kernels.cpu.kept import keep, read_kept
from florence.model.kernels.cpu.openmp import job_type

KernelBody = Callable[[Any], None]
"""A Python function of a job's address, for numba to compile."""

ENTRY: Final = "florence_kernel"  # the one symbol of an object
_OPTIMIZE: Final = 3


class Kernel:
    """A C function that takes the address of a job. `address` is valid as long as this object lives."""

    def __init__(self, code: bytes) -> None:
        self._engine = binding.create_mcjit_compiler(binding.parse_assembly(""), _target_machine())
        self._engine.add_object_file(binding.ObjectFileRef.from_data(code))
        self._engine.finalize_object()
        self.address: int = self._engine.get_function_address(ENTRY)


def load_kernel(name: str, fields: Sequence[str], make_work: Callable[[], KernelBody]) -> Kernel:
    """The kernel called `name`, from the cache or compiled now.

    `make_work` makes the function that runs on a job with these fields. The name must include all parameters
    of the kernel.
    """
    file_name = _file_name(name)
    code = read_kept(file_name)
    if code is None:
        code = compile_object(fields, make_work())
        keep(file_name, code)
    return Kernel(code)


def compile_object(fields: Sequence[str], work: KernelBody) -> bytes:
    """Object code without external symbols; its `ENTRY` calls `work`."""
    module = _optimized(fields, work)
    for symbol in (*module.functions, *module.global_variables):
        if symbol.name != ENTRY and not symbol.is_declaration:
            symbol.linkage = "internal"
    target = _target_machine()
    passes = binding.create_new_module_pass_manager()
    passes.add_global_dead_code_eliminate_pass()
    passes.run(module, binding.create_pass_builder(target, binding.create_pipeline_tuning_options()))
    symbols = [symbol for symbol in (*module.functions, *module.global_variables) if symbol.is_declaration]
    missing = [symbol.name for symbol in symbols if not symbol.name.startswith("llvm.")]
    if missing:
        raise RuntimeError(f"a kernel may call no function of others, this one wants {', '.join(missing)}")
    code: bytes = target.emit_object(module)
    return code


def _optimized(fields: Sequence[str], work: KernelBody) -> Any:
    """`work` and `ENTRY` as an optimised LLVM module, before code generation.

    numba's own JIT (`numba.cfunc`) returns a module after code generation, which can't be compiled again; and
    its entry calls numba's functions that report exceptions, which no kernel raises.
    """
    from numba import from_dtype, types
    from numba.core.compiler import Flags, compile_extra
    from numba.core.compiler_lock import global_compiler_lock
    from numba.core.registry import cpu_target

    flags = Flags()
    cpu_target.options.parse_as_flags(flags, {"nopython": True, "error_model": "numpy"})
    flags.no_compile = flags.no_cpython_wrapper = flags.no_cfunc_wrapper = True
    target = cpu_target.target_context.with_aot_codegen(ENTRY, cpu_name="host")
    job = types.CPointer(from_dtype(job_type(fields)))
    with global_compiler_lock:
        compiled = compile_extra(cpu_target.typing_context, target, work, (job,), types.void, flags, {})
        compiled.library.finalize()
    module = binding.parse_assembly(compiled.library.get_llvm_str())
    module.link_in(binding.parse_assembly(_entry(compiled.fndesc.llvm_func_name)))
    return module


def _file_name(name: str) -> str:
    """The cache's name for a kernel made from this source code, with these libraries, for this processor."""
    facts = [
        name,
        platform.python_version(),
        *(version(library) for library in ("numba", "llvmlite")),
        binding.get_host_cpu_name(),
        binding.get_host_cpu_features().flatten(),
    ]
    digest = hashlib.sha256("\n".join(facts).encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    return f"{digest.hexdigest()}.o"


def _target_machine() -> Any:
    """This processor, as numba compiles for it."""
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    return binding.Target.from_default_triple().create_target_machine(
        cpu=binding.get_host_cpu_name(),
        features=binding.get_host_cpu_features().flatten(),
        opt=_OPTIMIZE,
        codemodel="jitdefault",
        jit=True,
    )


def _entry(work: str) -> str:
    """LLVM IR of a C function that calls numba's function `work`, which takes pointers for a result and an
    exception as its first arguments, and returns a status."""
    return f"""
        declare i32 @"{work}"(ptr, ptr, ptr)
        define void @{ENTRY}(ptr %job) {{
            %result = alloca ptr
            %exception = alloca ptr
            %status = call i32 @"{work}"(ptr %result, ptr %exception, ptr %job)
            ret void
        }}
    """
