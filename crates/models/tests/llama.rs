//! Decoders of the Llama type against `transformers` (`tests/golden`).

use std::fs;
use std::path::{Path, PathBuf};

use colrow_autograd::{Grads, Mode, Policy, Tape, Var, testing};
use colrow_models::checkpoint::adapter;
use colrow_models::checkpoint::load::{self, Anew};
use colrow_models::checkpoint::safetensors::write;
use colrow_models::checkpoint::weights::Weights;
use colrow_models::config::Config;
use colrow_models::families::FAMILIES;
use colrow_models::lora;
use colrow_models::model::Model;
use colrow_models::tokens::Tokens;
use colrow_tensor::rng::Key;
use colrow_tensor::{DType, Device};
use serde::Deserialize;

const CASES: [&str; 9] =
    ["llama", "llama3", "linear", "dynamic", "mistral", "qwen2", "qwen2-window", "qwen3", "smollm3"];

#[derive(Deserialize)]
struct Inputs {
    sequences: Vec<Vec<u32>>,
    labels: Vec<Vec<f32>>,
    longest: usize,
    answers: Vec<Vec<u32>>,
}

struct Golden {
    dir: PathBuf,
    inputs: Inputs,
    expected: Weights,
}

impl Golden {
    fn open(case: &str) -> Self {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(format!("llama-{case}"));
        Self {
            inputs: serde_json::from_slice(&fs::read(dir.join("inputs.json")).unwrap()).unwrap(),
            expected: Weights::open_file(&dir.join("expected.safetensors")).unwrap(),
            dir,
        }
    }

    fn model(&self, dtype: DType) -> Model {
        let config = Config::open(&self.dir).unwrap();
        let loaded = load::model(&self.dir, config, &Device::cpu(), dtype, 1, Anew::default()).unwrap();
        assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
        loaded.model
    }

    fn expected(&self, key: &str) -> Vec<f64> {
        let mut numbers = Vec::new();
        let len = self.expected.shape(key).unwrap().iter().product();
        self.expected.read_parts(key, len, |_, part| numbers.extend(part.iter().copied().map(f64::from))).unwrap();
        numbers
    }

    /// The sequences `which` in one batch.
    fn tokens(&self, which: impl Iterator<Item = usize> + Clone) -> Tokens {
        let tokens = Tokens::of(which.clone().map(|i| &self.inputs.sequences[i]));
        Tokens { weight: Some(which.flat_map(|i| self.inputs.labels[i].clone()).collect()), ..tokens }
    }

    fn all(&self) -> Tokens {
        self.tokens(0..self.inputs.sequences.len())
    }
}

/// Logits of all rows.
fn logits(model: &Model, tokens: &Tokens) -> Vec<f64> {
    let mut tape = Tape::new(&model.registry.params, Mode::Inference);
    let language = model.language().unwrap();
    let x = language.continuation(&mut tape, tokens).unwrap().value;
    tape.head_logits(x, language.head()).to_f64()
}

fn largest_difference(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

/// In f64 what is left is the f32 of the reference's norms and sines, so that logits are no nearer. The sequences are in one batch here, and each alone there.
#[test]
fn logits_loss_and_gradients_are_those_of_transformers() {
    for case in CASES {
        let golden = Golden::open(case);
        let all = golden.all();
        for (dtype, logit_limit, gradient_limit) in [(DType::F32, 1e-5, 1e-4), (DType::F64, 1e-5, 1e-5)] {
            let model = golden.model(dtype);
            let off = largest_difference(&logits(&model, &all), &golden.expected("logits"));
            assert!(off < logit_limit, "{case} in {dtype:?}: logits are off by {off:e}");
            let params = &model.registry.params;
            let mut tape = Tape::new(params, testing::training(Key::new(1), true, Policy::exact(), None));
            let loss = model.next_token_loss(&mut tape, &all).unwrap();
            let off = (loss.value.scalar() - golden.expected("loss")[0]).abs();
            assert!(off < logit_limit, "{case} in {dtype:?}: loss is off by {off:e}");
            let mut grads = Grads::new(params);
            tape.backward(loss, 1.0, &mut grads).unwrap();
            for entry in &model.registry.entries {
                let found = &grads.of(entry.param).unwrap().to_f64()[entry.range()];
                let expected = golden.expected(&format!("grad.{}", entry.key));
                let scale = expected.iter().fold(0.0_f64, |m, x| m.max(x.abs()));
                let off = largest_difference(found, &expected) / scale;
                assert!(off < gradient_limit, "{case} in {dtype:?}: gradient of {} is off by {off:e}", entry.key);
            }
            let names = golden.expected.names().filter(|name| name.starts_with("grad.")).count();
            assert_eq!(model.registry.entries.len(), names, "{case}: every parameter has its gradient");
        }
    }
}

#[test]
fn greedy_answers_are_those_of_transformers() {
    for case in CASES {
        let golden = Golden::open(case);
        let model = golden.model(DType::F32);
        for (sequence, answer) in golden.inputs.sequences.iter().zip(&golden.inputs.answers) {
            let found = model.generate(&Tokens::of([sequence]), golden.inputs.longest).unwrap();
            assert_eq!(found, std::slice::from_ref(answer), "{case}");
        }
    }
}

/// Forty tokens with cached keys and values are those of a whole pass for each, for two sequences at once.
#[test]
fn a_cache_changes_no_token() {
    for case in CASES.into_iter().filter(|&case| case != "dynamic") {
        let golden = Golden::open(case);
        let mut model = golden.model(DType::F64);
        model.config.architecture = {
            let mut config = model
                .config
                .architecture
                .downcast_ref::<colrow_models::families::llama::LlamaConfig>()
                .unwrap()
                .clone();
            config.eos_token_ids.clear();
            Box::new(config)
        };
        let prompts = [[5, 9, 3], [7, 2, 11]];
        let answers = model.generate(&Tokens::of(prompts), 40).unwrap();
        let words = model.config.architecture.vocab_size();
        for (prompt, answer) in prompts.iter().zip(answers) {
            assert_eq!(answer.len(), 40);
            let text = [&prompt[..], &answer].concat();
            let all = logits(&model, &Tokens::of([&text]));
            for (i, &token) in answer.iter().enumerate() {
                let row = &all[(prompt.len() - 1 + i) * words..][..words];
                let best = (0..words).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap();
                assert_eq!(best as u32, token, "{case}: token {i}");
            }
        }
    }
}

/// The loss of documents together is that of each alone, by its labels; and a label never crosses.
#[test]
fn documents_do_not_see_each_other() {
    for case in CASES {
        let golden = Golden::open(case);
        let model = golden.model(DType::F64);
        let loss = |tokens: &Tokens| {
            let mut tape = Tape::new(&model.registry.params, Mode::Inference);
            let Var { value, .. } = model.next_token_loss(&mut tape, tokens).unwrap();
            value.scalar()
        };
        let count = |i: usize| golden.inputs.labels[i][1..].iter().copied().map(f64::from).sum::<f64>();
        let (mut sum, mut all) = (0.0, 0.0);
        for i in (0..golden.inputs.sequences.len()).filter(|&i| count(i) > 0.0) {
            sum += count(i) * loss(&golden.tokens(i..i + 1));
            all += count(i);
        }
        let together = loss(&golden.all());
        assert!((together - sum / all).abs() < 1e-12, "{case}: {together} is not {}", sum / all);
    }
}

/// Adapters that PEFT wrote, of all linears and of a head that is tied to the embedding: logits, loss and the gradients of every A and B; ours
/// written again are the same tensors. Merged they give the same logits, and of the embedding not a bit has changed.
#[test]
fn adapters_are_those_of_peft() {
    for (case, base, has_head) in [("decoder", "qwen3", false), ("tied-head", "llama3", true)] {
        let golden = Golden::open(base);
        let dir = golden.dir.with_file_name(format!("lora-{case}"));
        let golden = Golden { expected: Weights::open_file(&dir.join("expected.safetensors")).unwrap(), ..golden };
        // a model folder has a tokenizer
        let folder = tempfile::tempdir().unwrap();
        for file in ["config.json", "model.safetensors"] {
            fs::copy(golden.dir.join(file), folder.path().join(file)).unwrap();
        }
        fs::write(folder.path().join("tokenizer.json"), "{}").unwrap();
        let open = |dtype| {
            let base = folder.path().display().to_string();
            let loaded = load::adapted(&dir, Some(&base), FAMILIES, |_| {}, &Device::cpu(), dtype).unwrap();
            assert!(loaded.initialised.is_empty() && loaded.warnings.is_empty(), "{:?}", loaded.warnings);
            loaded.model
        };
        for (dtype, limit) in [(DType::F32, 1e-4), (DType::F64, 1e-5)] {
            let mut model = open(dtype);
            model.registry.freeze(|key| !lora::is_adapter_key(key)).unwrap();
            let off = largest_difference(&logits(&model, &golden.all()), &golden.expected("logits"));
            assert!(off < limit, "{case} in {dtype:?}: logits are off by {off:e}");
            let params = &model.registry.params;
            let mut tape = Tape::new(params, testing::training(Key::new(1), true, Policy::exact(), None));
            let loss = model.next_token_loss(&mut tape, &golden.all()).unwrap();
            assert!((loss.value.scalar() - golden.expected("loss")[0]).abs() < limit, "{case} in {dtype:?}");
            let mut grads = Grads::new(params);
            tape.backward(loss, 1.0, &mut grads).unwrap();
            let mut learned = 0;
            for entry in model.registry.entries.iter().filter(|e| lora::is_adapter_key(&e.key)) {
                let found = &grads.of(entry.param).unwrap().to_f64()[entry.range()];
                let expected = golden.expected(&format!("grad.{}", entry.key));
                let scale = expected.iter().fold(0.0_f64, |m, x| m.max(x.abs()));
                let off = largest_difference(found, &expected) / scale;
                assert!(off < limit, "{case} in {dtype:?}: gradient of {} is off by {off:e}", entry.key);
                learned += 1;
            }
            assert_eq!(learned, golden.expected.names().filter(|name| name.starts_with("grad.")).count());
        }
        let mut model = open(DType::F32);
        let theirs = Weights::open_file(&dir.join("adapter_model.safetensors")).unwrap();
        let settings = adapter::read_config(&dir).unwrap().lora;
        let written = folder.path().join("adapter_model.safetensors");
        write(&written, &adapter::saved(&model.registry, &settings), &[]).unwrap();
        let ours = Weights::open_file(&written).unwrap();
        let tensors = |weights: &Weights| -> Vec<(String, Vec<usize>, Vec<f32>)> {
            let of = weights.shapes().filter(|(name, _)| name.contains(".lora_")).map(|(name, shape)| {
                let mut numbers = vec![0.0; shape.iter().product()];
                weights.read(name, &mut numbers).unwrap();
                (name.to_owned(), shape.to_vec(), numbers)
            });
            of.collect()
        };
        assert!(tensors(&ours) == tensors(&theirs), "{case}");
        let embedding = |model: &Model| model.registry.params.iter().next().unwrap().1.value.dense().to_f64();
        let (before, words) = (logits(&model, &golden.all()), embedding(&model));
        assert_eq!(lora::merge(&mut model), has_head);
        let off = largest_difference(&before, &logits(&model, &golden.all()));
        assert!(off < 1e-4 && embedding(&model) == words, "{case}: merged logits are off by {off:e}");
        let config = model.config.to_json();
        assert!(config.contains("\"tie_word_embeddings\": false"), "{config}");
        assert!(model.registry.entries.iter().any(|entry| entry.key == "lm_head.weight"));
    }
}
