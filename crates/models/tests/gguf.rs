//! GGUF files in and out, against what other programs make of them (`tests/golden/gguf`).

#![allow(missing_docs, reason = "tests")]

use std::fs;
use std::path::{Path, PathBuf};

use colrow_models::checkpoint::gguf::Gguf;
use colrow_models::checkpoint::gguf::blocks::Format;
use colrow_models::checkpoint::gguf::export::{Exported, export};
use colrow_models::checkpoint::gguf::import::{ImportOptions, Imported, import};
use colrow_models::checkpoint::safetensors::{Data, Saved, write};
use colrow_models::checkpoint::weights::{Dtype, Weights};
use colrow_tensor::Result;
use serde_json::Value as Json;
use tempfile::TempDir;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/gguf").join(name)
}

fn numbers(weights: &Weights, key: &str) -> Vec<f32> {
    let len = weights.shape(key).unwrap_or_else(|| panic!("no {key}")).iter().product();
    let mut out = vec![0.0; len];
    weights.read(key, &mut out).unwrap();
    out
}

fn imported(file: &Path, out: &Path) -> Result<Imported> {
    import(file, out, ImportOptions::default(), &mut |_, _| {})
}

fn exported(dir: &Path, out: &Path, format: Format) -> Result<Exported> {
    export(dir, out, format, &mut |_, _| {})
}

fn json(path: &Path) -> Json {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

const MODELS: [&str; 7] = ["llama", "llama-3", "biases", "default", "qwen2", "qwen3", "pieces"];

#[test]
fn blocks_are_decoded_as_by_ggml() {
    let gguf = Gguf::open(&golden("blocks.gguf")).unwrap();
    let expected = Weights::open_file(&golden("blocks.safetensors")).unwrap();
    let mut read = 0;
    for (name, stored) in gguf.header.tensors.iter().filter(|(name, _)| *name != "encoded") {
        let mut out = vec![0.0; stored.elements()];
        gguf.read(stored, 0, &mut out).unwrap();
        assert_eq!(stored.format.name(), name);
        assert_eq!(out, numbers(&expected, name), "{name}");
        // from the middle of a tensor too
        let half = stored.elements() / 2 / 256 * 256;
        let mut part = vec![0.0; 256];
        gguf.read(stored, half, &mut part).unwrap();
        assert_eq!(part, out[half..half + 256], "{name}");
        read += 1;
    }
    assert_eq!(read, 11);
}

#[test]
fn blocks_of_eight_bits_are_written_as_by_ggml() {
    let gguf = Gguf::open(&golden("blocks.gguf")).unwrap();
    let stored = &gguf.header.tensors["encoded"];
    let bytes = &fs::read(gguf.path()).unwrap()[stored.range.start as usize..stored.range.end as usize];
    let mut out = Vec::new();
    let exact = numbers(&Weights::open_file(&golden("blocks.safetensors")).unwrap(), "F32");
    assert!(Format::Q8_0.encode(&exact, &mut out));
    assert_eq!(out, bytes);
}

#[test]
fn an_imported_model_is_the_one_of_transformers() {
    let dir = tempfile::tempdir().unwrap();
    for model in MODELS {
        let out = dir.path().join(model);
        let mut told = Vec::new();
        let done = import(&golden(&format!("{model}.gguf")), &out, ImportOptions::default(), &mut |done, of| {
            told.push((done, of))
        });
        let done = done.unwrap();
        assert_eq!(told.last(), Some(&(done.parameters, done.parameters)));
        let files =
            ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"];
        assert_eq!(names(&out), files, "{model}");
        if !golden(&format!("{model}.safetensors")).exists() {
            continue;
        }
        let expected = Weights::open_file(&golden(&format!("{model}.safetensors"))).unwrap();
        let found = Weights::open(&out).unwrap();
        assert_eq!(found.names().collect::<Vec<_>>(), expected.names().collect::<Vec<_>>(), "{model}");
        for (key, shape) in expected.shapes() {
            assert_eq!(found.shape(key), Some(shape), "{model} {key}");
            assert_eq!(numbers(&found, key), numbers(&expected, key), "{model} {key}");
        }
    }
    assert_eq!(names(dir.path()).len(), MODELS.len());
    let config = |model: &str| json(&dir.path().join(model).join("config.json"));
    let llama3 = config("llama-3");
    assert_eq!(llama3["rope_scaling"]["rope_type"], "llama3");
    assert_eq!(llama3["rope_scaling"]["original_max_position_embeddings"], 8192);
    assert_eq!(llama3["rope_scaling"]["factor"], 8.0);
    assert_eq!(llama3["torch_dtype"], "float16");
    let biases = config("biases");
    assert_eq!((&biases["attention_bias"], &biases["mlp_bias"]), (&true.into(), &true.into()));
    assert_eq!((&biases["tie_word_embeddings"], &biases["torch_dtype"]), (&false.into(), &"bfloat16".into()));
    let qwen3 = config("qwen3");
    assert_eq!((&qwen3["head_dim"], &qwen3["rope_theta"]), (&12.into(), &1e6.into()));
    assert_eq!((&qwen3["architectures"][0], &qwen3["torch_dtype"]), (&"Qwen3ForCausalLM".into(), &"float32".into()));
    let settings = json(&dir.path().join("llama/tokenizer_config.json"));
    assert!(settings["chat_template"].as_str().unwrap().starts_with("{% for m in messages %}"));
    assert_eq!((&settings["bos_token"], &settings["eos_token"]), (&"<|turn|>".into(), &"<|end|>".into()));
    assert_eq!(json(&dir.path().join("llama/generation_config.json"))["eos_token_id"], 0);
}

#[test]
fn weights_are_written_as_they_are_or_as_asked() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("bf16");
    let wanted = ImportOptions { dtype: Some(Dtype::BF16), tokenizer: None };
    import(&golden("qwen2.gguf"), &out, wanted, &mut |_, _| {}).unwrap();
    let weights = Weights::open(&out).unwrap();
    assert!(weights.names().all(|name| weights.dtype(name) == Some(Dtype::BF16)));
    assert_eq!(json(&out.join("config.json"))["torch_dtype"], "bfloat16");
    let expected = Weights::open_file(&golden("qwen2.safetensors")).unwrap();
    let (a, b) = (numbers(&weights, "model.embed_tokens.weight"), numbers(&expected, "model.embed_tokens.weight"));
    assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() <= b.abs() / 256.0));
    assert_ne!(a, b);
    let out = dir.path().join("f16");
    imported(&golden("qwen2.gguf"), &out).unwrap();
    let weights = Weights::open(&out).unwrap();
    assert_eq!(weights.dtype("model.embed_tokens.weight"), Some(Dtype::F16));
    assert_eq!(weights.dtype("model.norm.weight"), Some(Dtype::F32));
}

/// Folder, file, folder: the same bytes.
#[test]
fn a_model_that_went_out_comes_back_the_same() {
    for model in MODELS {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let wanted = ImportOptions { dtype: Some(Dtype::F32), tokenizer: None };
        import(&golden(&format!("{model}.gguf")), &at("a"), wanted, &mut |_, _| {}).unwrap();
        let done = exported(&at("a"), &at("a.gguf"), Format::F32).unwrap();
        assert!(done.unsaid.is_empty());
        assert_eq!(done.bytes, fs::metadata(at("a.gguf")).unwrap().len());
        imported(&at("a.gguf"), &at("b")).unwrap();
        assert_eq!(names(&at("a")), names(&at("b")));
        for name in names(&at("a")) {
            assert_eq!(
                fs::read(at("a").join(&name)).unwrap(),
                fs::read(at("b").join(&name)).unwrap(),
                "{model} {name}"
            );
        }
        // and the file has what programs ask for, with a token for every row
        let header = Gguf::open(&at("a.gguf")).unwrap().header;
        let rows = header.tensors["token_embd.weight"].shape[0];
        let texts = |key: &str| header.metadata.texts(&format!("tokenizer.ggml.{key}")).unwrap().map(<[_]>::len);
        assert_eq!((header.version, texts("tokens")), (3, Some(rows)));
        assert_eq!(header.metadata.wholes("tokenizer.ggml.token_type").unwrap().unwrap().len(), rows);
        assert_eq!(texts("merges").is_some(), model != "pieces");
        let arch = header.metadata.text("general.architecture").unwrap().unwrap();
        assert_eq!(
            header.metadata.count(&format!("{arch}.block_count")).unwrap(),
            Some(if model == "llama" { 2 } else { 1 })
        );
    }
}

#[test]
fn bits_that_can_hold_the_numbers_give_them_back() {
    for (model, format) in [("qwen2", Format::F16), ("biases", Format::BF16), ("llama-3", Format::F16)] {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        imported(&golden(&format!("{model}.gguf")), &at("a")).unwrap();
        exported(&at("a"), &at("a.gguf"), format).unwrap();
        imported(&at("a.gguf"), &at("b")).unwrap();
        for (key, _) in Weights::open(&at("a")).unwrap().shapes() {
            let [a, b] = ["a", "b"].map(|name| numbers(&Weights::open(&at(name)).unwrap(), key));
            assert_eq!(a, b, "{model} {key}");
        }
    }
}

#[test]
fn eight_bits_are_within_their_bound() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    // bf16, so that the numbers are not of eight bits from the start
    let wanted = ImportOptions { dtype: Some(Dtype::BF16), tokenizer: None };
    import(&golden("qwen3.gguf"), &at("a"), wanted, &mut |_, _| {}).unwrap();
    let done = exported(&at("a"), &at("a.gguf"), Format::Q8_0).unwrap();
    assert_eq!(done.formats, [(Format::Q8_0, 7), (Format::F32, 6)]);
    imported(&at("a.gguf"), &at("b")).unwrap();
    let [a, b] = ["a", "b"].map(|name| Weights::open(&at(name)).unwrap());
    for (key, shape) in a.shapes() {
        let (x, y) = (numbers(&a, key), numbers(&b, key));
        // norms, and rows that are no whole blocks, stay in f32
        if shape.len() == 1 || shape[1] % 32 != 0 {
            assert_eq!(x, y, "{key}");
            continue;
        }
        for (x, y) in x.chunks(32).zip(y.chunks(32)) {
            let step = x.iter().fold(0.0_f32, |m, x| m.max(x.abs())) / 127.0;
            let bound = step * (0.5 + 127.0 / 2048.0);
            assert!(x.iter().zip(y).all(|(x, y)| (x - y).abs() <= bound), "{key}");
        }
    }
}

#[test]
fn shards_are_exported_as_one_model() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let wanted = ImportOptions { dtype: Some(Dtype::F32), tokenizer: None };
    import(&golden("llama.gguf"), &at("a"), wanted, &mut |_, _| {}).unwrap();
    exported(&at("a"), &at("whole.gguf"), Format::F32).unwrap();
    let weights = Weights::open(&at("a")).unwrap();
    let mut map = serde_json::Map::new();
    for (number, parity) in [(1, 0), (2, 1)] {
        let file = format!("model-0000{number}-of-00002.safetensors");
        let mine: Vec<_> = weights.names().enumerate().filter(|(i, _)| i % 2 == parity).map(|(_, name)| name).collect();
        let data: Vec<_> = mine.iter().map(|name| numbers(&weights, name)).collect();
        let saved = mine.iter().zip(&data).map(|(name, data)| {
            map.insert(name.to_string(), file.clone().into());
            let shape = weights.shape(name).unwrap().to_vec();
            Saved { name: name.to_string(), shape, data: Data::F32(data) }
        });
        write(&at("a").join(&file), &saved.collect::<Vec<_>>(), &[]).unwrap();
    }
    fs::remove_file(at("a/model.safetensors")).unwrap();
    let index = serde_json::json!({"metadata": {}, "weight_map": map});
    fs::write(at("a/model.safetensors.index.json"), index.to_string()).unwrap();
    exported(&at("a"), &at("sharded.gguf"), Format::F32).unwrap();
    assert_eq!(fs::read(at("whole.gguf")).unwrap(), fs::read(at("sharded.gguf")).unwrap());
}

/// A golden file with some bytes in the place of others of the same length.
fn changed(dir: &TempDir, name: &str, from: &[u8], to: &[u8]) -> PathBuf {
    assert_eq!(from.len(), to.len());
    let mut bytes = fs::read(golden(name)).unwrap();
    let at = bytes.windows(from.len()).position(|window| window == from).expect("they are there");
    bytes[at..at + to.len()].copy_from_slice(to);
    let path = dir.path().join("changed.gguf");
    fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn files_that_are_no_model_of_ours_leave_no_folder() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let fails = |file: &Path, expected: &str| {
        let e = imported(file, &out).unwrap_err().to_string();
        assert!(e.contains(expected) && e.contains(&*file.to_string_lossy()), "{e:?} does not contain {expected:?}");
        assert!(names(dir.path()).iter().all(|name| name.ends_with(".gguf")), "{:?}", names(dir.path()));
    };
    let text = |text: &str| [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat();
    fails(&changed(&dir, "llama.gguf", &text("llama"), &text("gemma")), "found \"gemma\"");
    fails(&changed(&dir, "llama.gguf", b"blk.1.attn_q", b"blk.1.attn_z"), "tensors are missing: blk.1.attn_q.weight");
    let scaled = changed(&dir, "llama.gguf", b"llama.rope.freq_base", b"llama.residual_scale");
    fails(&scaled, "llama.residual_scale: a scale of residuals is not computed");
}

#[test]
fn tensors_of_another_shape_or_more_of_them_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let fails = |from: &[u8], to: &[u8], expected: &str| {
        let e = imported(&changed(&dir, "llama.gguf", from, to), &at("out")).unwrap_err().to_string();
        assert!(e.contains(expected), "{e:?} does not contain {expected:?}");
        assert!(!at("out").exists());
    };
    let count = |key: &str, n: u32| [key.as_bytes(), &4_u32.to_le_bytes(), &n.to_le_bytes()].concat();
    let set = |key: &str, from: u32, to: u32, expected: &str| fails(&count(key, from), &count(key, to), expected);
    set("llama.block_count", 2, 1, "tensors that no model of type llama has: blk.1.attn_k.weight");
    set("llama.block_count", 2, 3, "tensors are missing: blk.2.attn_norm.weight");
    set("llama.block_count", 2, u32::MAX, "llama.block_count: expected a whole number");
    set("llama.block_count", 2, 1 << 30, "1073741824 blocks in a file of 20 tensors");
    set("llama.feed_forward_length", 24, 25, "blk.0.ffn_gate.weight: expected shape (25, 16), found (24, 16)");
    set("llama.embedding_length", 16, 32, "token_embd.weight: expected rows of 32");
    set("llama.attention.head_count", 4, 3, "16 is no multiple of 3 heads");
    set("llama.attention.head_count", 4, 0, "expected a whole number above 0, found 0");
    set("llama.attention.head_count_kv", 2, 3, "expected a divisor of 4, found 3");
    fails(b"blk.0.attn_output.weight", b"blk.0.attn_output.scales", "blk.0.attn_output.weight");
}

#[test]
fn a_tokenizer_is_brought_where_the_file_has_none_that_is_known() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    imported(&golden("llama.gguf"), &at("other")).unwrap();
    let unknown = changed(&dir, "llama.gguf", b"smollm", b"tekken");
    let e = imported(&unknown, &at("out")).unwrap_err().to_string();
    assert!(e.contains("tokenizer.ggml.pre") && e.contains("\"tekken\"") && e.contains("--tokenizer DIR"), "{e}");
    let other = at("other");
    let wanted = ImportOptions { dtype: None, tokenizer: Some(&other) };
    import(&unknown, &at("out"), wanted, &mut |_, _| {}).unwrap();
    let [a, b] = ["other", "out"].map(|name| fs::read(at(name).join("tokenizer.json")).unwrap());
    assert_eq!(a, b);
    assert_eq!(json(&at("out/config.json")), json(&at("other/config.json")));
    // one of a larger vocabulary is another model's
    let e =
        import(&golden("pieces.gguf"), &at("large"), ImportOptions { dtype: None, tokenizer: None }, &mut |_, _| {});
    e.unwrap();
    let large = at("large");
    let wanted = ImportOptions { dtype: None, tokenizer: Some(&large) };
    let e = import(&unknown, &at("out2"), wanted, &mut |_, _| {}).unwrap_err().to_string();
    assert!(e.contains("is larger than the embedding") && e.contains("tokenizer.json"), "{e}");
    assert!(!at("out2").exists());
}

#[test]
fn what_is_there_is_not_written_over() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir(at("full")).unwrap();
    fs::write(at("full/thesis.tex"), "").unwrap();
    let e = imported(&golden("llama.gguf"), &at("full")).unwrap_err().to_string();
    assert!(e.contains("expected a new or empty folder"), "{e}");
    assert_eq!(names(&at("full")), ["thesis.tex"]);
    fs::create_dir(at("empty")).unwrap();
    imported(&golden("llama.gguf"), &at("empty")).unwrap();
    fs::write(at("there.gguf"), "mine").unwrap();
    let e = exported(&at("empty"), &at("there.gguf"), Format::F16).unwrap_err().to_string();
    assert!(e.contains("this file exists"), "{e}");
    assert_eq!(fs::read(at("there.gguf")).unwrap(), b"mine");
    let e = exported(&at("empty"), &at("empty/x.gguf"), Format::F16).unwrap_err().to_string();
    assert!(e.contains("lies in a folder that is read"), "{e}");
}

#[test]
fn what_gguf_cannot_hold_leaves_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let prepare = |change: &dyn Fn(&mut Json, &mut Json)| {
        let _ = fs::remove_dir_all(at("a"));
        imported(&golden("llama.gguf"), &at("a")).unwrap();
        let (mut config, mut tokenizer) = (json(&at("a/config.json")), json(&at("a/tokenizer.json")));
        change(&mut config, &mut tokenizer);
        fs::write(at("a/config.json"), config.to_string()).unwrap();
        fs::write(at("a/tokenizer.json"), tokenizer.to_string()).unwrap();
    };
    let fails = |change: &dyn Fn(&mut Json, &mut Json), format, expected: &str| {
        prepare(change);
        let e = exported(&at("a"), &at("a.gguf"), format).unwrap_err().to_string();
        assert!(e.contains(expected), "{e:?} does not contain {expected:?}");
        assert_eq!(names(dir.path()), ["a"]);
    };
    fails(&|config, _| config["model_type"] = "bert".into(), Format::F32, "found \"bert\"");
    fails(&|config, _| config["num_hidden_layers"] = 3.into(), Format::F32, "tensors are missing: model.layers.2.");
    fails(&|config, _| config["num_hidden_layers"] = 1.into(), Format::F32, "tensors that no model of type llama has");
    fails(&|config, _| config["vocab_size"] = 7.into(), Format::F32, "expected shape (7, 16)");
    fails(&|_, tokenizer| tokenizer["model"]["type"] = "Unigram".into(), Format::F32, "expected BPE, found Unigram");
    fails(&|_, tokenizer| tokenizer["pre_tokenizer"] = Json::Null, Format::F32, "pre_tokenizer: GGUF has names");
    fails(
        &|_, tokenizer| tokenizer["model"]["vocab"]["new"] = 9999.into(),
        Format::F32,
        "the vocabulary of 10000 tokens is larger",
    );
    fails(&|_, tokenizer| tokenizer["model"]["merges"][0] = "a".into(), Format::F32, "expected a merge of two tokens");
    fails(&|_, _| fs::write(at("a/model.safetensors"), "").unwrap(), Format::F32, "found an empty file");
    // a number that is too large for half precision
    prepare(&|_, _| {});
    let weights = Weights::open(&at("a")).unwrap();
    let data: Vec<_> = weights.shapes().map(|(key, _)| vec![1e6; numbers(&weights, key).len()]).collect();
    let saved: Vec<_> = (weights.shapes().zip(&data))
        .map(|((key, shape), data)| Saved { name: key.into(), shape: shape.to_vec(), data: Data::F32(data) })
        .collect();
    write(&at("a/model.safetensors"), &saved, &[]).unwrap();
    let e = exported(&at("a"), &at("a.gguf"), Format::F16).unwrap_err().to_string();
    assert!(e.contains("a number that is too large for F16"), "{e}");
    assert_eq!(names(dir.path()), ["a"]);
    exported(&at("a"), &at("a.gguf"), Format::BF16).unwrap();
}
