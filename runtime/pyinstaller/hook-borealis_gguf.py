"""What PyInstaller cannot see of this package: what is imported by name, the native encoders, the files of the page."""

from importlib import import_module

from PyInstaller.utils.hooks import collect_data_files, collect_dynamic_libs

from borealis_gguf.runtime.process.child_process import CHILDREN, PACKAGE

modules = import_module(PACKAGE).PUBLIC
hiddenimports = sorted({*CHILDREN, *(f"{PACKAGE}.{module}" for module in modules)})
binaries = collect_dynamic_libs(PACKAGE, search_patterns=["_kernels*.so", "_kernels*.pyd"])
# Only what the package itself reads: in a checkout its folder holds tests and models too.
datas = collect_data_files(PACKAGE, includes=["runtime/page/**"])
