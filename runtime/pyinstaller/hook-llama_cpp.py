"""The shared libraries of llama.cpp, every backend of them, which llama_cpp looks for in its own folder `lib`."""

import re

from PyInstaller.utils.hooks import collect_data_files, collect_dynamic_libs, copy_metadata

# Wheels cannot hold links, so each library is there three times; nobody asks for the name with the whole version.
WHOLE_VERSION = re.compile(r"\.so\.\d+\.")

found = collect_dynamic_libs("llama_cpp", search_patterns=["*.dll", "*.dylib", "*.so", "*.so.*"])
binaries = [(path, folder) for path, folder in found if not WHOLE_VERSION.search(path)]
datas = collect_data_files("llama_cpp", includes=["lib/*.metal", "lib/*.metallib"]) + copy_metadata("llama_cpp_python")
# For parts of it that this package does not use.
excludedimports = ["openai", "transformers"]
