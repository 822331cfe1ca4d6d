"""Writes the small GGUF files of `gguf/`, and what is in them as `transformers` has it.

    python tests/golden/make_gguf.py

Files are written by the package `gguf`. Numbers in blocks are decoded by its numpy decoders; rows of q and k are put in pairs here. Token ids come from
llama.cpp's regular expressions and a plain search for the next merge, and of pieces from `sentencepiece` itself.
"""

import io
import json
import unicodedata
from pathlib import Path

import numpy as np
import regex
import sentencepiece
import torch
from gguf import GGMLQuantizationType as Type
from gguf import GGUFWriter
from gguf.quants import dequantize, quant_shape_to_byte_shape, quantize
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

HERE = Path(__file__).resolve().parent
OUT = HERE / "gguf"

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
WORDS = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# as in llama.cpp's llama-vocab.cpp
EXPRESSIONS = {
    "gpt-2": [GPT2],
    "smollm": [r"\p{N}", GPT2],
    "llama-bpe": [WORDS % r"\p{N}{1,3}"],
    "qwen2": [WORDS % r"\p{N}"],
    "default": [r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"],
}

TEXTS = [
    "", " ", "a  b", "\n\n  \n", "The weights are read from the file, 1234567 bytes of it.", "it's THEY'RE we'll I'Ve 'd", "x1y22z333 4444",
    "caf\u00e9 cafe\u0301 nai\u0308ve", "\u65e5\u672c\u8a9e \u041f\u0440\u0438\u0432\u0435\u0442", "\U0001f642\U0001f642 ok", "\u00bd \u00b2 \u0663\u0664", "a_b-c.d<=>e $5+7",
    "def f(x):\n    return x**2\t# ok\r\n", "<|turn|>user\nhello<|end|>\n", "<tool>call</tool> <tool>", "  <|end|>  the", "trailing   ",
    "...---===", "don't!?\n\n\nwell", "\u00a0\u3000x",
]
SPECIAL = ["<|end|>", "<|turn|>"]
USER = ["<tool>"]
TEMPLATE = "{% for m in messages %}<|turn|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"


def corpus():
    text = "".join((HERE.parent.parent / name).read_text() for name in ["README.md", "docs/memory.md"])
    return text.encode("ascii", "ignore").decode()


def letters():
    """Bytes as GPT-2 writes them."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return {b: chr(b) if b in plain else chr(next(others)) for b in range(256)}


def byte_level():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=380, initial_alphabet=list(letters().values()), show_progress=False)
    tokenizer.train_from_iterator([corpus()], trainer)
    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    return tokens, [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]


def ids_of_bytes(pre, tokens, merges):
    ids = {token: i for i, token in enumerate(tokens)}
    rank = {tuple(merge.split(" ")): i for i, merge in enumerate(merges)}
    letter = letters()

    def word(text):
        parts = [letter[b] for b in text.encode()]
        if pre == "llama-bpe" and "".join(parts) in ids:
            return [ids["".join(parts)]]
        while len(parts) > 1:
            best = min(range(len(parts) - 1), key=lambda i: rank.get((parts[i], parts[i + 1]), 1 << 30))
            if (parts[best], parts[best + 1]) not in rank:
                break
            parts[best : best + 2] = [parts[best] + parts[best + 1]]
        return [ids[part] for part in parts]

    def plain(text):
        text = unicodedata.normalize("NFC", text) if pre == "qwen2" else text
        pieces = [text]
        for expression in EXPRESSIONS[pre]:
            pieces = [p for piece in pieces for p in isolated(expression, piece)]
        return [i for piece in pieces for i in word(piece)]

    cut = regex.compile("(" + "|".join(map(regex.escape, SPECIAL + USER)) + ")")
    whole = lambda text: [i for part in cut.split(text) for i in ([ids[part]] if part in SPECIAL + USER else plain(part))]
    return [whole(text) for text in TEXTS]


def isolated(expression, text):
    pieces, at = [], 0
    for match in regex.finditer(expression, text):
        pieces += [text[at : match.start()], match.group()]
        at = match.end()
    return [piece for piece in [*pieces, text[at:]] if piece]


def pieces_model():
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus().splitlines()), model_writer=out, vocab_size=420, model_type="bpe", byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, user_defined_symbols=[], character_coverage=0.999,
        num_threads=1, minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=out.getvalue())


def pairs(w, heads):
    """Rows (2, h/2) of each head as (h/2, 2), as convert_hf_to_gguf.py has them."""
    return w.reshape(heads, 2, w.shape[0] // heads // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output", "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}


def gguf_name(key):
    module, kind = key.rsplit(".", 1)
    if module.startswith("model.layers."):
        _, _, n, module = module.split(".", 3)
        return f"blk.{n}.{NAMES[module]}.{kind}"
    return f"{NAMES[module]}.{kind}"


def model(name, arch, config, kind, vocabulary, save=True):
    torch.manual_seed(len(name))
    net = AutoModelForCausalLM.from_config(config)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.3)
    state = {k: v.detach().numpy() for k, v in net.state_dict().items()}
    if config.tie_word_embeddings:
        del state["lm_head.weight"]
    writer = GGUFWriter(str(OUT / f"{name}.gguf"), arch)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if arch == "qwen3":
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    vocabulary(writer)
    expected = {}
    for key, w in state.items():
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(key.split(".")[-2])
        there = pairs(w, heads) if heads and arch == "llama" else w
        there = np.ascontiguousarray(there)
        stored = Type.F32 if w.ndim == 1 else kind
        if stored == Type.Q8_0 and w.shape[-1] % 32:
            stored = Type.F16
        data = quantize(there, stored)
        numbers = dequantize(data, stored).reshape(w.shape)
        if heads and arch == "llama":
            h = w.shape[0] // heads
            numbers = numbers.reshape(heads, h // 2, 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)
        expected[key] = np.ascontiguousarray(numbers.astype(np.float32))
        writer.add_tensor(gguf_name(key), data, raw_dtype=stored)
    if config.rope_parameters["rope_type"] == "llama3":
        # transformers' frequencies, and those without scaling
        plain = config.rope_parameters["rope_theta"] ** -(np.arange(0, head_dim, 2) / head_dim)
        scaled = net.model.rotary_emb.inv_freq.numpy()
        writer.add_tensor("rope_freqs.weight", (plain / scaled).astype(np.float32))
    finish(writer)
    if save:
        save_file(expected, OUT / f"{name}.safetensors")


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def bytes_vocabulary(pre, tokens, merges, bos=False):
    def add(writer):
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre)
        writer.add_token_list(tokens)
        writer.add_token_types([3 if t in SPECIAL else 4 if t in USER else 5 if t.startswith("[PAD") else 1 for t in tokens])
        writer.add_token_merges(merges)
        writer.add_bos_token_id(tokens.index("<|turn|>"))
        writer.add_eos_token_id(tokens.index("<|end|>"))
        writer.add_pad_token_id(tokens.index("<|end|>"))
        if not bos:
            writer.add_add_bos_token(False)
        writer.add_chat_template(TEMPLATE)

    return add


def pieces_vocabulary(spm):
    def add(writer):
        n = spm.vocab_size()
        writer.add_tokenizer_model("llama")
        writer.add_token_list([spm.id_to_piece(i) for i in range(n)])
        writer.add_token_scores([spm.get_score(i) for i in range(n)])
        kind = lambda i: 2 if spm.is_unknown(i) else 3 if spm.is_control(i) else 6 if spm.is_byte(i) else 1
        writer.add_token_types([kind(i) for i in range(n)])
        writer.add_bos_token_id(spm.bos_id())
        writer.add_eos_token_id(spm.eos_id())
        writer.add_unk_token_id(spm.unk_id())

    return add


def blocks():
    random = np.random.default_rng(1)
    writer = GGUFWriter(str(OUT / "blocks.gguf"), "blocks")
    expected = {}
    scales = {Type.Q4_0: [0], Type.Q4_1: [0, 2], Type.Q5_0: [0], Type.Q5_1: [0, 2], Type.Q8_0: [0], Type.Q4_K: [0, 2], Type.Q5_K: [0, 2], Type.Q6_K: [208]}
    for kind, places in scales.items():
        shape = quant_shape_to_byte_shape((3, 256), kind)
        size = {Type.Q4_K: 144, Type.Q5_K: 176, Type.Q6_K: 210}.get(kind) or quant_shape_to_byte_shape((1, 32), kind)[1]
        data = random.integers(0, 256, size=(3 * shape[1] // size, size), dtype=np.uint8)
        for at in places:
            data[:, at : at + 2] = random.normal(size=(len(data), 1)).astype("<f2").view(np.uint8)
        data = data.reshape(shape)
        writer.add_tensor(kind.name, data, raw_dtype=kind)
        expected[kind.name] = dequantize(data, kind)
    numbers = (random.normal(size=(2, 256)) * random.uniform(0, 3, size=(2, 256))).astype(np.float32)
    numbers[1, 32:64] = 0
    for kind in (Type.F32, Type.F16, Type.BF16):
        data = quantize(numbers, kind)
        writer.add_tensor(kind.name, data, raw_dtype=kind)
        expected[kind.name] = dequantize(data, kind).astype(np.float32)
    writer.add_tensor("encoded", quantize(numbers, Type.Q8_0), raw_dtype=Type.Q8_0)
    finish(writer)
    save_file(expected, OUT / "blocks.safetensors")


def main():
    OUT.mkdir(exist_ok=True)
    blocks()
    tokens, merges = byte_level()
    tokens = SPECIAL + tokens + USER + [f"[PAD{len(tokens) + 3}]"]
    sizes = dict(vocab_size=len(tokens), hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
                 num_key_value_heads=2, max_position_embeddings=64, rms_norm_eps=1e-5)
    rope = lambda theta, **more: dict(rope_parameters={"rope_type": "default", "rope_theta": theta, **more})
    small = {**sizes, "num_hidden_layers": 1}
    model("llama", "llama", LlamaConfig(**sizes, **rope(100000.0), tie_word_embeddings=True), Type.F32, bytes_vocabulary("smollm", tokens, merges))
    scaling = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192)
    model("llama-3", "llama", LlamaConfig(**{**small, "max_position_embeddings": 65536, "num_attention_heads": 1, "num_key_value_heads": 1},
          **rope(500000.0, **scaling), tie_word_embeddings=True), Type.F16, bytes_vocabulary("llama-bpe", tokens, merges, bos=True))
    model("biases", "llama", LlamaConfig(**small, **rope(10000.0), attention_bias=True, mlp_bias=True, tie_word_embeddings=False), Type.BF16,
          bytes_vocabulary("gpt-2", tokens, merges))
    model("default", "llama", LlamaConfig(**small, **rope(10000.0), tie_word_embeddings=True), Type.F16, bytes_vocabulary("default", tokens, merges), save=False)
    model("qwen2", "qwen2", Qwen2Config(**small, **rope(1e6), tie_word_embeddings=False), Type.F16, bytes_vocabulary("qwen2", tokens, merges))
    wide = {**small, "hidden_size": 32, "intermediate_size": 64, "head_dim": 12}
    model("qwen3", "qwen3", Qwen3Config(**wide, **rope(1e6), tie_word_embeddings=True), Type.Q8_0, bytes_vocabulary("qwen2", tokens, merges))
    spm = pieces_model()
    model("pieces", "llama", LlamaConfig(**{**small, "vocab_size": spm.vocab_size()}, **rope(10000.0), tie_word_embeddings=True), Type.F16,
          pieces_vocabulary(spm), save=False)
    ids = {name: ids_of_bytes(pre, tokens, merges) for name, pre in
           {"llama": "smollm", "llama-3": "llama-bpe", "biases": "gpt-2", "default": "default", "qwen2": "qwen2"}.items()}
    # texts of special tokens are split otherwise there
    ids["pieces"] = [spm.encode(text) for text in TEXTS]
    (OUT / "tokens.json").write_text(json.dumps({"texts": TEXTS, "ids": ids}, ensure_ascii=True, indent=None) + "\n")


if __name__ == "__main__":
    main()
