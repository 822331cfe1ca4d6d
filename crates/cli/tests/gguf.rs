//! `colrow import` and `colrow export`.

#![allow(missing_docs, reason = "tests")]

mod common;

use std::fs;
use std::path::Path;

use common::Place;

fn golden(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/gguf").join(name);
    path.to_string_lossy().into_owned()
}

#[test]
fn a_file_becomes_a_folder_and_a_file_again() {
    let place = Place::new();
    let json = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
    let said = place.ok(&["import", &golden("qwen3.gguf"), "--out", "qwen3"]);
    assert!(
        said.contains("23160 numbers as f32, from 7 tensors of 8 bits (Q8_0), 5 of 32 bits (F32), 1 of 16 bits (F16)")
    );
    assert!(said.contains("the model is in qwen3"));
    let said = place.ok_json(&["import", &golden("llama.gguf"), "--out", "llama", "--dtype", "bf16", "--json"]);
    assert_eq!(
        (&said["architecture"], &said["dtype"], &said["model"]),
        (&"llama".into(), &"bf16".into(), &"llama".into())
    );
    assert_eq!(said["tensors"], json(r#"[{"type": "F32", "bits": 32, "count": 20}]"#));
    let said = place.ok_json(&["export", "--model", "qwen3", "--out", "q.gguf", "--type", "q8_0", "--json"]);
    assert_eq!(said["bytes"], fs::metadata(place.path("q.gguf")).unwrap().len());
    assert_eq!(said["tensors"][0], json(r#"{"type": "Q8_0", "bits": 8, "count": 7}"#));
    let said = place.ok(&["export", "--model", "llama", "--out", "l.gguf"]);
    assert!(said.contains("15 tensors of 16 bits (F16), 5 of 32 bits (F32)"), "{said}");
    place.ok(&["import", "l.gguf", "--out", "again"]);
}

#[test]
fn bad_input_is_named() {
    let place = Place::new();
    let fails = |args: &[&str], code: i32, expected: &str| {
        let ran = place.run(args);
        assert_eq!(ran.code, Some(code), "{args:?}: {}", ran.err);
        assert!(ran.err.contains(expected), "{args:?}: {:?} does not contain {expected:?}", ran.err);
        assert!(!place.path("out").exists());
    };
    let file = golden("llama.gguf");
    fails(&["import", &file, "--out", "model"], 2, "--out: expected a new or empty folder");
    fails(&["import", "recipe.toml", "--out", "out"], 1, "expected a GGUF file, found something else");
    fails(&["import", "absent.gguf", "--out", "out"], 1, "cannot open");
    fails(&["import", &file, "--out", "absent/out"], 1, "cannot");
    fails(&["import", &file, "--out", "out", "--tokenizer", "absent"], 2, "--tokenizer: expected a folder");
    let bytes = fs::read(&file).unwrap();
    for (len, expected) in [
        (20, "ends within its header"),
        (3000, "longer than the rest of the file"),
        (300, "ends within its metadata"),
        (bytes.len() - 40, "ends at byte"),
    ] {
        fs::write(place.path("cut.gguf"), &bytes[..len]).unwrap();
        fails(&["import", "cut.gguf", "--out", "out"], 1, expected);
    }
    fails(
        &["export", "--model", "model", "--out", "out"],
        1,
        "model_type: expected llama, mistral, qwen2 or qwen3, found \"bert\"",
    );
    fails(
        &["export", "--model", "model", "--out", "out", "--type", "q4_0"],
        2,
        "possible values: f32, f16, bf16, q8_0",
    );
    fails(&["export", "--model", "model", "--out", "train.tsv"], 2, "this file exists");
    fails(&["export", "--model", "absent", "--out", "out"], 1, "absent/config.json");
}
