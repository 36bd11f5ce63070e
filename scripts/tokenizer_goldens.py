"""Writes text/tests/data: small tokenizers trained on the text below, and what
Hugging Face's `tokenizers` package makes of some strings with them.

usage: tokenizer_goldens.py [FOLDER]
"""
import json
import sys
from pathlib import Path

from tokenizers import (BertWordPieceTokenizer, ByteLevelBPETokenizer, Tokenizer, decoders, models,
                        normalizers, pre_tokenizers, processors, trainers)

TEXT = """
The quick brown fox jumps over the lazy dog, and the dog does not mind.
A compiler reads a program and writes another one that means the same.
Matrices are multiplied row by column; attention is a softmax of products.
Straße, café, naïve, Ångström: letters with marks. 東京は日本の首都です。
It costs 3.50 euros (or $4.10), 12,000 times a year: don't ask why!
""".strip().splitlines() * 20

SAMPLES = [
    "", " ", "the quick brown fox", "The LAZY dog doesn't mind.", "Straße and café",
    "naïve Ångström", "東京は日本", "unseen words: zyzzyva, qwertyuiop", "3.50 and $4.10, 12,000!",
    "a\tb\nc  d", "emoji 🦊 and 👩‍💻", "[CLS] inside [SEP] text", "ends with space ",
    "é as two marks: e\u0301", "a" * 130, "<s>bos</s>", "control \u0007 character",
]


def cases(tokenizer):
    out = []
    for text in SAMPLES:
        ids = tokenizer.encode(text).ids
        out.append({"text": text, "plain": tokenizer.encode(text, add_special_tokens=False).ids,
                    "ids": ids, "decoded": tokenizer.decode(ids)})
    return out


def main():
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "text/tests/data")
    goldens = {}

    for name, lower in [("bert-uncased", True), ("bert-cased", False)]:
        to = folder / name
        to.mkdir(parents=True, exist_ok=True)
        trained = BertWordPieceTokenizer(lowercase=lower)
        trained.train_from_iterator(TEXT, vocab_size=400, show_progress=False)
        # The order of equal counts differs from run to run of the trainer.
        words = sorted(trained.get_vocab(), key=lambda w: (not w.startswith("["), w))
        (to / "vocab.txt").write_text("\n".join(words) + "\n")
        (to / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": lower}) + "\n")
        tokenizer = BertWordPieceTokenizer(vocab=str(to / "vocab.txt"), lowercase=lower)
        goldens[name] = cases(tokenizer)

    def save(name, tokenizer):
        to = folder / name
        to.mkdir(parents=True, exist_ok=True)
        tokenizer.save(str(to / "tokenizer.json"), pretty=False)
        goldens[name] = cases(tokenizer)

    gpt = ByteLevelBPETokenizer()
    gpt.train_from_iterator(TEXT, vocab_size=450, show_progress=False, special_tokens=["<|endoftext|>"])
    save("byte-bpe", gpt)

    unigram = Tokenizer(models.Unigram())
    unigram.normalizer = normalizers.NFKC()
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    unigram.decoder = decoders.Metaspace()
    unigram.train_from_iterator(TEXT, trainers.UnigramTrainer(
        vocab_size=200, show_progress=False, unk_token="<unk>", special_tokens=["<pad>", "</s>", "<unk>"]))
    unigram.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    save("unigram", unigram)

    llama = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    llama.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    llama.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    llama.train_from_iterator(TEXT, trainers.BpeTrainer(
        vocab_size=500, show_progress=False,
        special_tokens=["<unk>", "<s>", "</s>"] + [f"<0x{i:02X}>" for i in range(256)]))
    llama.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    save("llama-bpe", llama)

    (folder / "goldens.json").write_text(json.dumps(goldens, ensure_ascii=False, indent=0) + "\n")


main()
