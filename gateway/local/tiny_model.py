"""A tiny Llama with random weights: real loading code, real tokenizer, real KV pages, gibberish text.

Run it with the Python of the vLLM environment, as a module or as a plain script; it needs torch, transformers and
tokenizers, and nothing of the gateway:

    .venv-vllm/bin/python gateway/local/tiny_model.py DIR [--dtype float32|bfloat16] [--size tiny|small] [--seed N]

The same machine makes the same files every time: the weights come from a seed (of others: other weights, all else
alike), the vocabulary from a fixed list of the standard library's sources. A complete model is left alone; an
interrupted one never has the final name.
"""

import argparse
import shutil
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

SPECIAL_TOKENS = ["<|bos|>", "<|eos|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
VOCABULARY = 8192
CONTEXT_TOKENS = 4096
SEED = 0
# tiny: 7 million weights, some 500 tokens a second on one core: for tests. small: 32 million, some 60 tokens a
# second: for people, who want to see an answer being written, and servers that do not outrun their own API process.
SIZES = {
    "tiny": {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4},
    "small": {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 8},
}
COMPLETE = "complete"  # an empty file, written last
# Prose and code enough for 8k merges; every one is in all of Python 3.11 to 3.14.
SOURCES = """
    _collections_abc _pydecimal _pyio _strptime abc argparse ast base64 bdb bisect bz2 calendar cmd code codecs codeop
    colorsys compileall configparser contextlib contextvars copy copyreg csv dataclasses datetime decimal difflib dis
    doctest enum filecmp fileinput fnmatch fractions ftplib functools genericpath getopt getpass gettext glob graphlib
    gzip hashlib heapq hmac imaplib inspect io ipaddress keyword linecache locale lzma mailbox mimetypes modulefinder
    netrc nturl2path numbers opcode operator optparse os pdb pickle pickletools pkgutil platform plistlib poplib
    posixpath pprint profile pstats pyclbr pydoc queue quopri random reprlib runpy sched secrets selectors shelve shlex
    shutil site smtplib socket socketserver ssl stat statistics string stringprep struct subprocess symtable tabnanny
    tarfile tempfile textwrap this threading timeit token tokenize trace traceback tracemalloc turtle types typing uuid
    warnings wave weakref webbrowser zipapp zipfile
""".split()  # noqa: SIM905 -- a hundred quoted names would not be read


def main() -> None:
    parser = argparse.ArgumentParser(description="Make a tiny random Llama for tests and demos.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--size", choices=sorted(SIZES), default="tiny")
    parser.add_argument("--seed", type=int, default=SEED)
    options = parser.parse_args()
    if is_complete(options.directory):
        print(f"{options.directory}: already there")
    else:
        make(options.directory, options.dtype, options.size, options.seed)
        print(f"{options.directory}: made")


def is_complete(directory: Path) -> bool:
    """Tell whether the model is there, whole."""
    return (directory / COMPLETE).exists()


def make(directory: Path, dtype: str, size: str, seed: int = SEED) -> None:
    """Build beside the goal and rename at the end, so that an interrupted build leaves nothing that looks whole."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        vocabulary = save_tokenizer(draft)
        save_weights(draft, vocabulary, dtype, size, seed)
        (draft / COMPLETE).touch()
        draft.chmod(0o755)
        if not is_complete(directory):  # else somebody else made it meanwhile
            shutil.rmtree(directory, ignore_errors=True)
            draft.rename(directory)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def save_tokenizer(directory: Path) -> int:
    """Train a byte-level BPE; return its size in tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast  # type: ignore[import-not-found]

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train([str(path) for path in source_files()], trainer)
    tokenizer: Any = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<|bos|>", eos_token="<|eos|>")
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(directory)
    return len(tokenizer)


def source_files() -> list[Path]:
    """The sources the vocabulary is trained on, in a fixed order."""
    library = Path(sysconfig.get_paths()["stdlib"])
    return [path for name in sorted(SOURCES) if (path := library / f"{name}.py").is_file()]


def save_weights(directory: Path, vocabulary: int, dtype: str, size: str, seed: int) -> None:
    """Draw random weights."""
    import torch  # type: ignore[import-not-found]
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        **SIZES[size],
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT_TOKENS,
        bos_token_id=SPECIAL_TOKENS.index("<|bos|>"),
        eos_token_id=SPECIAL_TOKENS.index("<|eos|>"),
    )
    LlamaForCausalLM(config).to(getattr(torch, dtype)).save_pretrained(directory)


if __name__ == "__main__":
    main()
