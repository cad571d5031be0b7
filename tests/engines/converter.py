"""Runs a converter of llama.cpp: ``python converter.py HOME SCRIPT [ARGUMENT …]``.

It recognises published tokenizers by a hash and wants sentencepiece; the tokenizers of the tests are made in
code, so the two questions are answered here.
"""

import runpy
import sys
from pathlib import Path

home, script, *arguments = sys.argv[1:]
sys.path[:0] = [str(Path(home) / "gguf-py"), home]

from conversion.base import TextModel  # noqa: E402 - of the folder that was just added

TextModel.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"
TextModel._set_vocab_sentencepiece = lambda self, *args, **kwargs: self._set_vocab_gpt2()
sys.argv = [script, *arguments]
runpy.run_path(str(Path(home) / script), run_name="__main__")
