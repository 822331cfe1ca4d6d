//! A family of another crate, whose stacked projections have different heights: adapted, merged, frozen, saved and read again.

use std::collections::BTreeSet;
use std::path::Path;

use colrow_autograd::{Mode, ParamId, RowsOf, Tape, Var};
use colrow_models::checkpoint::adapter;
use colrow_models::checkpoint::load::{self, Anew};
use colrow_models::checkpoint::names::TOKENIZER_FILE;
use colrow_models::checkpoint::safetensors::{Data, Saved, write};
use colrow_models::checkpoint::save::{save_adapter_folder, save_model_folder};
use colrow_models::checkpoint::weights::Weights;
use colrow_models::config::Config;
use colrow_models::family::{Architecture, Family, HeadKind, Keys};
use colrow_models::layers::{Dense, Module, Norm, Width};
use colrow_models::lora::{self, LoraConfig};
use colrow_models::model::Model;
use colrow_models::net::{Net, Site, SiteKind};
use colrow_models::registry::{Init, NUM_LABELS, Registry};
use colrow_models::tokens::Tokens;
use colrow_tensor::rng::Key;
use colrow_tensor::{Class, DType, Device};

const WIDTH: usize = 5;
const WORDS: usize = 11;

#[derive(Clone, Debug, PartialEq)]
struct Grouped {
    queries: usize,
    keys: usize,
    dropout: f64,
}

#[derive(Debug)]
struct Layers {
    words: ParamId,
    norm: Norm,
    qkv: Dense,
    head: Dense,
}

impl Architecture for Grouped {
    fn net(&self, labels: usize, r: &mut Registry) -> Box<dyn Net> {
        let words = r.add("body.words.weight", &[WORDS, WIDTH], &["vocab_size", "width"], Init::Normal(1.0));
        let norm = Norm::rms(r, "body.", "norm", Width { d: WIDTH, dims: &["width"] }, 1e-6);
        let part = |name: &str, outputs: usize, dims| Module { name: format!("body.{name}"), outputs, dims, std: 1.0 };
        let parts = [
            part("q_proj", self.queries, &["queries", "width"]),
            part("k_proj", self.keys, &["keys", "width"]),
            part("v_proj", self.keys + 1, &["keys", "width"]),
        ];
        let qkv = Dense::new(r, "qkv", &parts, WIDTH, true);
        let columns = self.queries + 2 * self.keys + 1;
        let score = Module { name: "score".into(), outputs: labels, dims: &[NUM_LABELS, "columns"], std: 1.0 };
        let head = Dense::new(r, "score", &[score], columns, true);
        Box::new(Layers { words, norm, qkv, head })
    }

    fn hidden_size(&self) -> usize {
        WIDTH
    }

    fn layers(&self) -> usize {
        1
    }

    fn vocab_size(&self) -> usize {
        WORDS
    }

    fn set_dropout(&mut self, p: f64) {
        self.dropout = p;
    }
}

impl Net for Layers {
    fn sites(&self) -> Vec<Site> {
        let mut sites = vec![Site::new(self.norm.site(), RowsOf::Sequences, SiteKind::Norm)];
        [&self.qkv, &self.head].iter().for_each(|dense| sites.extend(Site::of_dense(dense, RowsOf::Sequences, false)));
        sites
    }

    fn linears_mut(&mut self) -> Vec<&mut Dense> {
        vec![&mut self.qkv, &mut self.head]
    }

    fn logits(&self, tape: &mut Tape<'_>, tokens: &Tokens) -> Option<Var> {
        let first: Vec<u32> = tokens.iter().map(|sequence| sequence[0]).collect();
        let ids = tape.device().tensor(Class::Workspace, &[first.len()], &first);
        let x = tape.embedding("words", &[(&ids, self.words)]);
        let x = self.norm.forward(tape, &x);
        let x = self.qkv.forward(tape, &x);
        Some(self.head.forward(tape, &x))
    }
}

static GROUPED: Family = Family {
    model_type: "grouped",
    name: "Grouped",
    head: HeadKind::Classifier,
    saved_class: "GroupedForSequenceClassification",
    tokenizer_class: "BertTokenizer",
    tokenizer_files: &["words.txt"],
    architecture: |fields, _| {
        let (queries, keys) = (fields.size("queries", None, 1 << 16), fields.size("keys", None, 1 << 16));
        Box::new(Grouped { queries, keys, dropout: 0.0 })
    },
    keys: Keys {
        prefix: "body.",
        body: &["words.", "norm.", "q_proj."],
        head: &[],
        ignored: &[],
        aliases: &[],
        siblings: &[],
    },
    adapter_targets: &["q_proj", "v_proj"],
    modules_to_save: &["score"],
    peft_task: "SEQ_CLS",
};
const FAMILIES: &[&Family] = &[&GROUPED];

fn config() -> Config {
    let json = br#"{"model_type": "grouped", "queries": 6, "keys": 2, "num_labels": 3}"#;
    Config::from_json_of(FAMILIES, json, Path::new("config.json")).unwrap()
}

fn model() -> Model {
    let mut model = Model::new(config(), &Device::cpu(), DType::F32);
    model.init(1);
    model
}

fn settings() -> LoraConfig {
    let owned = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
    LoraConfig {
        lora_rank: 2,
        targets: owned(GROUPED.adapter_targets),
        modules_to_save: owned(GROUPED.modules_to_save),
        ..LoraConfig::default()
    }
}

/// With adapters that do something.
fn adapted() -> Model {
    let mut model = model();
    lora::adapt(&mut model, &settings(), 1).unwrap();
    let Registry { params, entries, .. } = &mut model.registry;
    for entry in entries.iter().filter(|e| lora::is_adapter_key(&e.key) && !lora::is_a_key(&e.key)) {
        let key = Key::new(2).named(&entry.key);
        let value = params[entry.param].value.dense_mut();
        value.write_f64((0..value.len() as u64).map(|i| key.normal(i)));
    }
    model
}

fn logits(model: &Model) -> Vec<f64> {
    let mut tape = Tape::new(&model.registry.params, Mode::Inference);
    model.logits(&mut tape, &Tokens::of([&[3, 1][..], &[7], &[10]])).unwrap().value.to_f64()
}

/// A folder with the files of a tokenizer.
fn source() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in [TOKENIZER_FILE, "words.txt", "vocab.txt"] {
        std::fs::write(dir.path().join(name), "{}").unwrap();
    }
    dir
}

fn save(model: &Model, dir: &Path) {
    save_model_folder(dir, &model.config, &model.registry.saved(|_| true), source().path(), None).unwrap();
}

fn read(dir: &Path) -> Model {
    let config = Config::open_of(FAMILIES, dir).unwrap();
    let loaded = load::model(dir, config, &Device::cpu(), DType::F32, 9, Anew::default()).unwrap();
    assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
    loaded.model
}

#[test]
fn a_model_is_saved_by_module_and_read_again() {
    let runs = tempfile::tempdir().unwrap();
    let dir = runs.path().join("model");
    let model = model();
    save(&model, &dir);
    let weights = Weights::open(&dir).unwrap();
    for (module, rows) in [("q_proj", 6), ("k_proj", 2), ("v_proj", 3)] {
        assert_eq!(weights.shape(&format!("body.{module}.weight")), Some(&[rows, WIDTH][..]));
        assert_eq!(weights.shape(&format!("body.{module}.bias")), Some(&[rows][..]));
    }
    assert_eq!(logits(&read(&dir)), logits(&model));
    let names = std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let expected = ["config.json", "model.safetensors", "tokenizer.json", "words.txt"].map(str::to_owned);
    assert_eq!(names.collect::<BTreeSet<_>>(), expected.into());
    // what is there may be replaced, files of other families too
    std::fs::write(dir.join("vocab.txt"), "").unwrap();
    save(&model, &dir);
    let text = std::fs::read_to_string(dir.join("config.json")).unwrap();
    assert!(text.contains("GroupedForSequenceClassification") && text.contains("\"queries\": 6"), "{text}");
    let error = Config::open(&dir).unwrap_err().to_string();
    assert!(error.contains("found model_type \"grouped\"; supported: \"bert\", \"t5\""), "{error}");
}

#[test]
fn adapters_are_merged_saved_and_read_again() {
    let runs = tempfile::tempdir().unwrap();
    let (base, dir, merged) = (runs.path().join("base"), runs.path().join("adapter"), runs.path().join("merged"));
    save(&model(), &base);
    let mut model = adapted();
    let before = logits(&model);
    assert_ne!(before, logits(&self::model()));
    let (tensors, settings) = (adapter::saved(&model.registry, &settings()), settings());
    let json = adapter::to_json(&settings, &model, base.to_str().unwrap());
    save_adapter_folder(&dir, &GROUPED, json, &tensors, source().path(), None).unwrap();
    let file = Weights::open_file(&dir.join("adapter_model.safetensors")).unwrap();
    assert_eq!(file.shape("base_model.model.body.q_proj.lora_B.weight"), Some(&[6, 2][..]));
    assert_eq!(file.shape("base_model.model.body.v_proj.lora_B.weight"), Some(&[3, 2][..]));

    let again = load::adapted(&dir, None, FAMILIES, |_| {}, &Device::cpu(), DType::F32).unwrap();
    assert_eq!(logits(&again.model), before);

    lora::merge(&mut model);
    let after = logits(&model);
    let largest = before.iter().fold(0.0, |most: f64, x| most.max(x.abs()));
    // two sums of WIDTH products and one of the columns' in other orders
    let tolerance = 2.0 * 30.0 * f64::from(f32::EPSILON) * largest.max(1.0);
    assert!(before.iter().zip(&after).all(|(a, b)| (a - b).abs() < tolerance), "{before:?} {after:?}");
    save(&model, &merged);
    assert_eq!(logits(&read(&merged)), after);
}

#[test]
fn what_is_stacked_is_frozen_together() {
    let mut model = adapted();
    let error = model.registry.freeze(|key| key.contains("k_proj")).unwrap_err().to_string();
    assert!(error.contains("body.q_proj.weight, body.k_proj.weight, body.v_proj.weight, which are one"), "{error}");
    model.registry.freeze(|key| !lora::is_adapter_key(key)).unwrap();
    let learned = model.registry.entries.iter().filter(|e| model.registry.is_trainable(e)).map(|e| e.key.as_str());
    let expected = ["q_proj.lora_A", "q_proj.lora_B", "v_proj.lora_A", "v_proj.lora_B"];
    let expected = expected.map(|name| format!("body.{name}.weight"));
    assert_eq!(learned.collect::<BTreeSet<_>>(), expected.iter().map(String::as_str).collect());
}

#[test]
fn a_module_of_another_height_is_named_with_its_key() {
    let dir = tempfile::tempdir().unwrap();
    let model = model();
    let tall = vec![0.0; 3 * WIDTH];
    let of = |saved: Saved<'_>| saved.name != "body.k_proj.weight";
    let mut tensors: Vec<_> = model.registry.saved(|_| true).into_iter().filter(|s| of(s.clone())).collect();
    tensors.push(Saved { name: "body.k_proj.weight".into(), shape: vec![3, WIDTH], data: Data::F32(&tall) });
    write(&dir.path().join("model.safetensors"), &tensors, &[]).unwrap();
    let error =
        load::model(dir.path(), config(), &Device::cpu(), DType::F32, 1, Anew::default()).unwrap_err().to_string();
    assert!(error.contains("body.k_proj.weight: expected shape (2, 5), found (3, 5)"), "{error}");
    assert!(error.contains("config.json says keys = 2"), "{error}");
}

#[test]
fn the_configuration_of_any_family_is_cloned_and_compared() {
    let (one, mut other) = (config(), config());
    assert_eq!(one, other.clone());
    other.architecture.set_dropout(0.5);
    assert_ne!(one, other);
    assert_eq!(other.architecture.downcast_ref::<Grouped>().unwrap().dropout, 0.5);
    assert_eq!(
        (one.family().name, one.architecture.longest(), one.architecture.end_tokens()),
        ("Grouped", None, vec![])
    );
}
