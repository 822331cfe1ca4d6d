"""What `transformers` makes of small tokenizer folders, for every setting of their files that changes tokens.

    python3 -m pip install transformers sentencepiece
    python3 tests/golden/make_tokenizers.py
"""

import base64
import io
import json
import tempfile
from pathlib import Path

import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from transformers import AutoTokenizer

TEXTS = [
    ("The naïve Café, the cafe!", None),
    ("a中文b 中 a", None),
    ("", None),
    ("  the  cat ", None),
    ("unbelievable 12345 zzz", None),
    ("the [SEP] cat </s> sat <extra> on <unk>", None),
    ("the cat sat", "on the mat the cat sat"),
    ("the cat sat on the mat", "the"),
    ("the cat sat on the mat the cat", "cat the mat on the Cat sat"),
    ("ﬁve １ cat", "Ａ cat"),
    ("", "the"),
]
LENGTHS = [5, 8, 64]

WORDS = (
    "[PAD] [UNK] [CLS] [SEP] [MASK] the The cat Cat sat on mat a b naive naïve cafe café Café , ! . un ##believ ##able "
    "##a ##b ##s 中 文 ##文 12 ##345 ##3 ##4 ##5 fi ##ve 1 [X]"
).split()


def added(id, token, **more):
    return {"id": id, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
            "special": True, **more}


def bert(**parts):
    template = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                   {"SpecialToken": {"id": "[SEP]", "type_id": 0}}],
        "pair": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                 {"SpecialToken": {"id": "[SEP]", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}},
                 {"SpecialToken": {"id": "[SEP]", "type_id": 1}}],
        "special_tokens": {t: {"id": t, "ids": [i], "tokens": [t]} for i, t in ((2, "[CLS]"), (3, "[SEP]"))},
    }
    model = {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
             "vocab": {word: i for i, word in enumerate(WORDS)}}
    model.update(parts.pop("model", {}))
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [added(i, WORDS[i]) for i in range(5)],
        "normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None,
                       "lowercase": True},
        "pre_tokenizer": {"type": "BertPreTokenizer"}, "post_processor": template,
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True}, "model": model, **parts,
    }


def pieces():
    """A Unigram vocabulary and a small table of characters, as SentencePiece trains them."""
    corpus = ["the cat sat on the mat", "naive cafe , the cat ! unbelievable 12345", "five 1 A cat", "a b on the mat sat cat"] * 50
    with tempfile.TemporaryDirectory() as folder:
        rules = Path(folder, "rules.tsv")
        pairs = [("ﬁ", "fi"), ("１", "1"), ("Ａ", "A")]
        rules.write_text("".join(" ".join(f"{ord(c):X}" for c in a) + "\t" + " ".join(f"{ord(c):X}" for c in b) + "\n" for a, b in pairs))
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(corpus), model_writer=model, vocab_size=60, model_type="unigram", pad_id=0, eos_id=1, unk_id=2,
            bos_id=-1, normalization_rule_tsv=str(rules), num_threads=1, hard_vocab_limit=False, minloglevel=2,
        )
    proto = sentencepiece_model_pb2.ModelProto.FromString(model.getvalue())
    return [[p.piece, round(p.score, 4)] for p in proto.pieces], base64.b64encode(proto.normalizer_spec.precompiled_charsmap).decode()


PIECES, CHARSMAP = pieces()


def t5(**parts):
    table = {"type": "Precompiled", "precompiled_charsmap": CHARSMAP}
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    end = {"SpecialToken": {"id": "</s>", "type_id": 0}}
    a, b = ({"Sequence": {"id": s, "type_id": 0}} for s in "AB")
    model = {"type": "Unigram", "unk_id": 2, "vocab": PIECES, "byte_fallback": False}
    model.update(parts.pop("model", {}))
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [added(0, "<pad>"), added(1, "</s>"), added(2, "<unk>")],
        "normalizer": table, "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, metaspace]},
        "post_processor": {"type": "TemplateProcessing", "single": [a, end], "pair": [a, end, b, end],
                           "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}}},
        "decoder": metaspace, "model": model, **parts,
    }


def byte_pairs():
    words = ["<unk>", "t", "h", "e", "c", "a", "s", "o", "n", "m", "th", "the", "at", "cat"]
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [added(0, "<unk>")], "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None,
        "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": {w: i for i, w in enumerate(words)}, "merges": [["t", "h"], ["th", "e"], ["a", "t"], ["c", "at"]]},
    }


def cases():
    cased = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": False}
    left = {"max_length": 6, "strategy": "LongestFirst", "stride": 0, "direction": "Left"}
    fast = {"tokenizer_class": "PreTrainedTokenizerFast"}
    yield "bert", "bert", bert(), None
    yield "bert, lower case as the file says not to", "bert", bert(normalizer=cased), None
    yield "bert, an empty config", "bert", bert(normalizer=cased), {}
    yield "bert, do_lower_case off", "bert", bert(), {"do_lower_case": False}
    yield "bert, cased in both", "bert", bert(normalizer=cased), {"do_lower_case": False, "tokenizer_class": "BertTokenizer"}
    yield "bert, strip_accents off", "bert", bert(), {"strip_accents": False}
    yield "bert, strip_accents without lower case", "bert", bert(), {"strip_accents": True, "do_lower_case": False}
    yield "bert, tokenize_chinese_chars off", "bert", bert(), {"tokenize_chinese_chars": False}
    yield "bert, cut at the left", "bert", bert(), {"truncation_side": "left"}
    yield "bert, cut at the left by the file", "bert", bert(truncation=left), None
    yield "bert, cut at the right against the file", "bert", bert(truncation=left), {"truncation_side": "right"}
    yield "bert, no post-processor", "bert", bert(post_processor=None), {"tokenizer_class": "BertTokenizerFast"}
    yield "bert, other parts", "bert", bert(
        normalizer={"type": "Lowercase"}, pre_tokenizer={"type": "WhitespaceSplit"},
        model={"max_input_chars_per_word": 3, "continuing_subword_prefix": "@@"}), None
    yield "bert, types left out", "bert", bert(), {"model_input_names": ["input_ids", "attention_mask"]}
    yield "bert, split_special_tokens", "bert", bert(), {"split_special_tokens": True}
    yield "bert, other special tokens", "bert", bert(), {"cls_token": "[X]", "sep_token": "[MASK]", "unk_token": "a"}
    yield "bert, special tokens as objects", "bert", bert(), {"cls_token": {"__type": "AddedToken", "content": "[X]"}}
    yield "bert, added_tokens_decoder", "bert", bert(), {
        "added_tokens_decoder": {"3": {"content": "[SEP]", "special": True, "normalized": False},
                                 "8": {"content": "Cat", "special": False, "normalized": False, "single_word": True}}}
    yield "bert, the file as it is", "bert", bert(normalizer=cased, post_processor=None), fast
    yield "bert, the file as it is and its types", "bert", bert(normalizer=cased), {
        **fast, "model_input_names": ["input_ids", "token_type_ids"]}
    yield "bert, another family's class", "bert", bert(), {"tokenizer_class": "DistilBertTokenizer", "do_lower_case": False}
    yield "bert, byte pairs", "bert", byte_pairs(), fast
    yield "t5", "t5", t5(), None
    yield "t5, no post-processor", "t5", t5(post_processor=None), {"tokenizer_class": "T5TokenizerFast"}
    yield "t5, cut at the left", "t5", t5(), {"truncation_side": "left", "tokenizer_class": "T5Tokenizer"}
    yield "t5, more steps", "t5", t5(normalizer={"type": "Sequence", "normalizers": [
        {"type": "Precompiled", "precompiled_charsmap": CHARSMAP}, {"type": "Lowercase"}]},
        pre_tokenizer={"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}), None
    yield "t5, no normalizer", "t5", t5(normalizer=None), {"extra_ids": 0}
    yield "t5, another id for unknown text", "t5", t5(model={"unk_id": 5}), None
    yield "t5, added tokens", "t5", t5(), {"additional_special_tokens": ["<extra>"], "extra_ids": 0}
    yield "t5, the file as it is", "t5", t5(normalizer={"type": "Lowercase"}, post_processor=None), fast


def encoded(name, family, tokenizer, config):
    files = {"config.json": {"model_type": family}, "tokenizer.json": tokenizer}
    if config is not None:
        files["tokenizer_config.json"] = config
    with tempfile.TemporaryDirectory() as folder:
        for file, content in files.items():
            Path(folder, file).write_text(json.dumps(content))
        loaded = AutoTokenizer.from_pretrained(folder)
    rows = []
    for length in LENGTHS:
        for text, pair in TEXTS:
            pairs = None if pair is None else [pair]
            made = loaded([text], pairs, truncation=True, max_length=length)
            ids = made["input_ids"][0]
            rows.append({"ids": ids, "types": made.get("token_type_ids", [[0] * len(ids)])[0]})
    return {"name": name, "class": type(loaded).__name__, "files": files, "rows": rows}


def main():
    found = {"lengths": LENGTHS, "texts": TEXTS, "cases": [encoded(*case) for case in cases()]}
    lines = ",\n".join(json.dumps(case, ensure_ascii=False, separators=(",", ":")) for case in found.pop("cases"))
    head = json.dumps(found, ensure_ascii=False)[:-1]
    Path(__file__).with_name("tokenizers.json").write_text(f'{head}, "cases": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
