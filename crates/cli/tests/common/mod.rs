//! What the tests of the program share: a folder with a tiny model, data and a recipe, and a way to run the program in it.

#![allow(dead_code, reason = "each test file uses its own share")]
#![allow(missing_docs, unreachable_pub, reason = "tests")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use colrow_models::checkpoint::save::save_model_folder;
use colrow_models::config::Config;
use colrow_models::model::Model;
use colrow_tensor::{DType, Device};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Special tokens first; the rest are the words of [`rows`].
pub const VOCABULARY: [&str; 16] = [
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "fine", "bad", "poor", "the", "a", "film", "plot", "was", "and",
    "very", ".",
];

/// Makes what [`Place::train`] and others run: `model/`, `train.tsv` (40 rows), `dev.tsv` (12 rows), `recipe.toml`.
pub struct Place {
    dir: TempDir,
}

/// How a run of the program ended.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

/// Trains in `run/` for two epochs of five steps, with the default policy (exact).
pub const RECIPE: &str = r#"task = "classify"
seed = 1
output = "run"
[model]
path = "./model"
[data]
train = "train.tsv"
dev = "dev.tsv"
max_length = 32
[train]
epochs = 2
batch = 8
log_every = 1
[optim]
lr = 1e-3
warmup = 0.1
"#;

impl Place {
    pub fn new() -> Self {
        let place = Self { dir: tempfile::tempdir().unwrap() };
        place.model("model", &config());
        place.write("train.tsv", tsv(&rows(40, 1, None)));
        place.write("dev.tsv", tsv(&rows(12, 2, None)));
        place.write("recipe.toml", RECIPE);
        place
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    pub fn text(&self, name: &str) -> String {
        String::from_utf8(self.read(name)).unwrap()
    }

    pub fn json(&self, name: &str) -> Value {
        serde_json::from_slice(&self.read(name)).unwrap()
    }

    /// Names in a folder, sorted; none if it is not there.
    pub fn names(&self, folder: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(folder)).into_iter().flatten().flatten();
        let mut names: Vec<_> = entries.map(|e| e.file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// A random model with a tokenizer.
    pub fn model(&self, name: &str, config: &Value) {
        self.model_with(name, config, &tokenizer(&VOCABULARY));
    }

    /// A random T5 with a tokenizer that ends every text.
    pub fn t5(&self, name: &str, config: &Value) {
        self.model_with(name, config, &t5_tokenizer());
    }

    /// A random decoder.
    pub fn decoder(&self, name: &str, config: &Value, tokenizer: &Value) {
        self.model_with(name, config, tokenizer);
    }

    fn model_with(&self, name: &str, config: &Value, tokenizer: &Value) {
        let config = Config::from_json(config.to_string().as_bytes(), Path::new("config.json")).unwrap();
        let mut model = Model::new(config, &Device::cpu(), DType::F32);
        model.init(7);
        let source = tempfile::tempdir().unwrap();
        fs::write(source.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
        save_model_folder(&self.path(name), &model.config, &model.registry.saved(|_| true), source.path(), None)
            .unwrap();
    }

    /// The program in this folder, with no network.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_colrow"));
        command.args(args).current_dir(self.dir.path()).stdin(Stdio::null());
        command.env("HF_HUB_OFFLINE", "1").env("HF_HOME", self.path("hub")).env("COLROW_CACHE", self.path("cache"));
        command
    }

    /// As [`Place::command`], with the signals of a program in a terminal, even where whoever runs the tests ignores them.
    pub fn interruptible(&self, args: &[&str]) -> Command {
        let program = self.command(args);
        let mut command = Command::new("env");
        command.arg("--default-signal=INT,TERM,HUP").arg(program.get_program()).args(program.get_args());
        command.current_dir(self.dir.path()).stdin(Stdio::null());
        command.envs(program.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command
    }

    pub fn run(&self, args: &[&str]) -> Ran {
        finish(&mut self.command(args))
    }

    /// Runs the program and expects success; returns its standard output.
    #[track_caller]
    pub fn ok(&self, args: &[&str]) -> String {
        let ran = self.run(args);
        assert_eq!(ran.code, Some(0), "{args:?}: {}", ran.err);
        ran.out
    }

    /// As [`Place::ok`], for commands that print JSON and nothing else.
    #[track_caller]
    pub fn ok_json(&self, args: &[&str]) -> Value {
        let out = self.ok(args);
        serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {out}"))
    }

    /// `train recipe.toml --json` with `--set` arguments; returns the summary.
    #[track_caller]
    pub fn train(&self, sets: &[&str]) -> Value {
        let mut args = vec!["train", "recipe.toml", "--json"];
        args.extend(sets.iter().flat_map(|s| ["--set", s]));
        self.ok_json(&args)
    }

    /// `metrics.jsonl` of a run, without times.
    pub fn metrics(&self, run: &str) -> Vec<Value> {
        let text = self.text(&format!("{run}/metrics.jsonl"));
        let line = |line: &str| {
            let mut value: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
            value.as_object_mut().unwrap().remove("step_seconds");
            value
        };
        text.lines().map(line).collect()
    }
}

/// Waits until a run has done some steps.
#[track_caller]
pub fn wait_for_steps(place: &Place, child: &mut Child, run: &str, lines: usize) {
    let start = Instant::now();
    while fs::read_to_string(place.path(run).join("metrics.jsonl")).map_or(0, |t| t.lines().count()) < lines {
        assert!(start.elapsed() < Duration::from_secs(60) && child.try_wait().unwrap().is_none(), "{run} does not run");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub fn finish(command: &mut Command) -> Ran {
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ran { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

/// A BERT of two layers of 16.
pub fn config() -> Value {
    json!({
        "model_type": "bert", "architectures": ["BertForSequenceClassification"], "vocab_size": VOCABULARY.len(),
        "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
        "hidden_act": "gelu", "max_position_embeddings": 32, "type_vocab_size": 2, "layer_norm_eps": 1e-12,
        "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, "initializer_range": 0.2,
    })
}

/// A T5 of one layer and 16 columns.
pub fn t5_config() -> Value {
    json!({
        "model_type": "t5", "d_model": 16, "d_kv": 8, "num_heads": 2, "d_ff": 32, "num_layers": 1, "vocab_size": 24,
        "dropout_rate": 0.0, "feed_forward_proj": "relu", "initializer_factor": 0.5, "decoder_start_token_id": 0,
        "eos_token_id": 1, "pad_token_id": 0,
    })
}

fn t5_tokenizer() -> Value {
    let words = ["<pad>", "</s>", "<unk>", "sst2", "sentence:", "negative", "positive", "so"];
    let vocabulary: Vec<&str> = words.iter().chain(&VOCABULARY[4..]).copied().collect();
    let mut json = tokenizer(&vocabulary);
    let special = |id: u32, token: &str| {
        json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    json["added_tokens"] = json!([special(0, "<pad>"), special(1, "</s>"), special(2, "<unk>")]);
    json["pre_tokenizer"] = json!({"type": "WhitespaceSplit"});
    json["post_processor"] = json!({
        "type": "TemplateProcessing",
        "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}},
    });
    json["model"]["unk_token"] = json!("<unk>");
    json
}

/// A WordPiece tokenizer of whole words.
pub fn tokenizer(vocabulary: &[&str]) -> Value {
    let vocab: serde_json::Map<_, _> = vocabulary.iter().enumerate().map(|(i, t)| (t.to_string(), json!(i))).collect();
    let special = |id: u32, token: &str| {
        json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(0, "[PAD]"), special(1, "[UNK]"), special(2, "[CLS]"), special(3, "[SEP]")],
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
                       "strip_accents": null, "lowercase": true},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]},
        "decoder": null,
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                  "max_input_chars_per_word": 100, "vocab": vocab},
    })
}

/// Pseudo-random numbers below `below` (splitmix64).
pub fn random(seed: &mut u64, below: usize) -> usize {
    *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = (*seed ^ (*seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) % below as u64) as usize
}

/// `n` texts of 3 to 12 words (or exactly `words`) and their labels: 1 if the text holds `good` or `fine`, 0 if `bad` or `poor`.
pub fn rows(n: usize, seed: u64, words: Option<usize>) -> Vec<(String, usize)> {
    let mut seed = seed;
    let row = |i: usize| {
        let label = i % 2;
        let length = words.unwrap_or_else(|| 3 + random(&mut seed, 10));
        let mut text: Vec<&str> = (0..length).map(|_| VOCABULARY[8 + random(&mut seed, 8)]).collect();
        text[random(&mut seed, length)] = VOCABULARY[4 + 2 * (1 - label) + random(&mut seed, 2)];
        (text.join(" "), label)
    };
    (0..n).map(row).collect()
}

pub fn tsv(rows: &[(String, usize)]) -> String {
    rows.iter().fold("sentence\tlabel\n".into(), |all, (text, label)| format!("{all}{text}\t{label}\n"))
}

/// A version 1.0 `.npy` file of f64 in C order.
pub fn npy(rows: usize, cols: usize, values: &[f64]) -> Vec<u8> {
    let header = format!("{{'descr': '<f8', 'fortran_order': False, 'shape': ({rows}, {cols}), }}");
    let length = (10 + header.len() + 1).next_multiple_of(64) - 10;
    let mut out = b"\x93NUMPY\x01\x00".to_vec();
    out.extend((length as u16).to_le_bytes());
    out.extend(format!("{header:<width$}\n", width = length - 1).bytes());
    out.extend(values.iter().flat_map(|v| v.to_le_bytes()));
    out
}
