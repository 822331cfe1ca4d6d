//! The model, its gradients and the optimizer against `transformers` (`tests/golden`).

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use colrow_autograd::{Keep, Policy};
use colrow_models::checkpoint::adapter::{self, AdapterConfig, Base};
use colrow_models::checkpoint::load::{self, Anew};
use colrow_models::checkpoint::names::ADAPTER_WEIGHTS_FILE;
use colrow_models::checkpoint::safetensors::{Saved, write};
use colrow_models::checkpoint::save::{save_adapter_folder, save_model_folder};
use colrow_models::checkpoint::weights::Weights;
use colrow_models::config::Config;
use colrow_models::families::FAMILIES;
use colrow_models::families::bert::BertConfig;
use colrow_models::lora;
use colrow_models::tokens::Tokens;
use colrow_tensor::{DType, Device};
use colrow_train::data::{Batch, Labels};
use colrow_train::recipe::Schedule;
use colrow_train::schedule::lr_at;
use colrow_train::step::{Engine, StepStats};
use colrow_train::step::{Hyperparameters, Moments};
use common::{ADAMW, GRADIENT, engine, engine_of, largest, logits, minus, norm, numbers, tokenizer, weights, within};
use serde::Deserialize;

const CASES: [&str; 6] = ["gelu", "tanh", "one-layer", "pairs", "regression", "pytorch-tanh"];

#[derive(Deserialize)]
struct Sequence {
    ids: Vec<u32>,
    types: Vec<u32>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Targets {
    Classes(Vec<u32>),
    Values(Vec<f32>),
}

#[derive(Deserialize)]
struct Inputs {
    sequences: Vec<Sequence>,
    labels: Targets,
}

struct Golden {
    dir: PathBuf,
    config: Config,
    inputs: Inputs,
    expected: Weights,
}

impl Golden {
    fn open(case: &str) -> Self {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(format!("bert-{case}"));
        Self {
            config: Config::open(&dir).unwrap(),
            inputs: serde_json::from_slice(&fs::read(dir.join("inputs.json")).unwrap()).unwrap(),
            expected: Weights::open_file(&dir.join("expected.safetensors")).unwrap(),
            dir,
        }
    }

    fn expected(&self, key: &str) -> Vec<f64> {
        numbers(&self.expected, key)
    }

    fn all(&self) -> Batch {
        self.micro(0..self.inputs.sequences.len())
    }

    /// The sequences `which`, in this order.
    fn micro(&self, which: impl IntoIterator<Item = usize>) -> Batch {
        let which: Vec<usize> = which.into_iter().collect();
        let rows = || which.iter().map(|&i| &self.inputs.sequences[i]);
        let labels = match &self.inputs.labels {
            Targets::Classes(all) => Labels::Class(which.iter().map(|&i| all[i]).collect()),
            Targets::Values(all) => Labels::Value(which.iter().map(|&i| all[i]).collect()),
        };
        let tokens = Tokens::of(rows().map(|s| &s.ids));
        Batch {
            special: vec![false; tokens.ids.len()],
            tokens: Tokens { types: rows().flat_map(|s| s.types.clone()).collect(), ..tokens },
            labels: Some(labels),
            ..Batch::default()
        }
    }

    fn engine(&self, dtype: DType, settings: Hyperparameters) -> Engine {
        engine(&self.dir, &self.config, dtype, settings)
    }

    /// Statistics of a step over `micros`, and the gradient of each of the checkpoint's tensors.
    fn gradients(&self, dtype: DType, policy: Policy, micros: &[Batch]) -> (StepStats, Vec<(String, Vec<f64>)>) {
        let mut engine = self.engine(dtype, GRADIENT);
        engine.gradient.policy = Arc::new(policy);
        common::gradients(engine, micros)
    }
}

/// Relative distances of gradients, each tensor's on its own scale; that of `key.bias`, which is zero in exact arithmetic, on the
/// scale of `key.weight`.
fn check_gradients(what: &str, found: &[(String, Vec<f64>)], expected: impl Fn(&str) -> Vec<f64>, limit: f64) {
    for (key, found) in found {
        let scale = norm(&expected(&key.replace("key.bias", "key.weight")));
        within(&format!("{what}: gradient of {key}"), norm(&minus(found, &expected(key))) / scale, limit);
    }
}

#[test]
fn logits_loss_and_gradients_are_those_of_transformers() {
    for case in CASES {
        let golden = Golden::open(case);
        let all = golden.all();
        // the golden values are rounded to f32, so f64 cannot be nearer than that
        for (dtype, logit_limit, gradient_limit) in [(DType::F32, 1e-5, 1e-4), (DType::F64, 1e-6, 1e-6)] {
            let what = format!("{case} in {dtype:?}");
            let logits: Vec<f64> = logits(&golden.engine(dtype, ADAMW), &all).into_iter().map(f64::from).collect();
            within(&what, largest(minus(&logits, &golden.expected("logits"))), logit_limit);
            let (stats, gradients) = golden.gradients(dtype, Policy::exact(), std::slice::from_ref(&all));
            within(&format!("{what}: loss"), (stats.loss - golden.expected("loss")[0]).abs(), logit_limit);
            let grad_norm = golden.expected("grad_norm")[0];
            within(&format!("{what}: gradient norm"), (stats.grad_norm / grad_norm - 1.0).abs(), gradient_limit);
            check_gradients(&what, &gradients, |key| golden.expected(&format!("grad.{key}")), gradient_limit);
            let names = golden.expected.names().filter(|n| n.starts_with("grad.")).count();
            assert_eq!(gradients.len(), names, "{what}: every parameter has its gradient");
        }
    }
}

#[test]
fn rebuilt_inputs_give_the_same_gradients_to_the_bit() {
    for (case, dtype) in CASES.into_iter().flat_map(|case| [(case, DType::F32), (case, DType::F64)]) {
        let golden = Golden::open(case);
        let all = [golden.all()];
        let (exact, gradients) = golden.gradients(dtype, Policy::exact(), &all);
        // attention that rebuilds q, k and v also sums its softmax again, in another order of operations
        let rules = [("*attention.self", Keep::Exact), ("*", Keep::Nothing)];
        let policy = common::by_patterns(&golden.config, &|_| Ok(()), &rules);
        let (rebuilt, same) = golden.gradients(dtype, policy, &all);
        assert!(gradients == same, "{case} in {dtype:?}");
        assert!(rebuilt.kept_bytes < exact.kept_bytes, "{case}: {} bytes", rebuilt.kept_bytes);
    }
}

#[test]
fn adamw_steps_are_those_of_pytorch() {
    for (case, dtype) in CASES.into_iter().flat_map(|case| [(case, DType::F32), (case, DType::F64)]) {
        let golden = Golden::open(case);
        let mut engine = golden.engine(dtype, ADAMW);
        let start = weights(&engine);
        let mut rates = 0.0;
        for step in 1..=3 {
            let lr = lr_at(Schedule::Linear, 1e-3, step - 1, 0, 10);
            rates += lr;
            engine.step(&[golden.all()], lr, step, false).unwrap();
            let prefix = match step {
                1 => "adamw",
                3 => "adamw3",
                _ => continue,
            };
            for ((key, found), (_, start)) in weights(&engine).into_iter().zip(&start) {
                let what = format!("{case} in {dtype:?}: {key} after step {step}");
                if dtype == DType::F32 && key.ends_with("key.bias") {
                    // AdamW divides the rounding noise of a zero gradient by itself
                    within(&what, largest(minus(&found, start)), rates + 1e-6);
                } else {
                    within(&what, largest(minus(&found, &golden.expected(&format!("{prefix}.{key}")))), 1e-6);
                }
            }
        }
    }
}

/// Forty steps with every moment in eight bits. A step of a weight is off by as much as its moments are: r by less than a place of 1.6 to 5 % of it,
/// m by half of one of 3 to 10 %. Over steps that is right on average, so the way that all weights have gone is off by no more than
/// a tenth; and the loss, to which thousands of weights contribute errors of either sign, by a hundredth of its fall.
#[test]
fn moments_in_eight_bits_follow_those_in_floats() {
    for case in CASES {
        let golden = Golden::open(case);
        let run = |eight_bit: bool| {
            let mut engine = golden.engine(DType::F32, ADAMW);
            let start = weights(&engine);
            if eight_bit {
                for (id, p) in engine.model.registry.params.iter() {
                    engine.update.moments[id.index()] = Some(Moments::eight_bit(&p.value, p.value.len()));
                }
            }
            let losses: Vec<f64> =
                (1..=40).map(|step| engine.step(&[golden.all()], 1e-3, step, false).unwrap().loss).collect();
            // AdamW divides the rounding noise of key.bias by itself
            let moved = weights(&engine).into_iter().zip(start).filter(|((key, _), _)| !key.ends_with("key.bias"));
            (losses, moved.flat_map(|((_, now), (_, start))| minus(&now, &start)).collect::<Vec<f64>>())
        };
        let ((exact, way), (losses, other_way)) = (run(false), run(true));
        let fall = exact[0] - exact[39];
        assert!(fall > 0.3 * exact[0], "{case}: {exact:?}");
        within(&format!("{case}: weights"), norm(&minus(&way, &other_way)) / norm(&way), 0.1);
        within(&format!("{case}: losses"), largest(minus(&exact, &losses)), 0.01 * fall);
        assert!(losses[2..] != exact[2..], "{case}: eight bits are not floats");
    }
}

#[test]
fn order_and_division_of_a_batch_do_not_matter() {
    for case in CASES {
        let golden = Golden::open(case);
        let n = golden.inputs.sequences.len();
        let (whole, expected) = golden.gradients(DType::F64, Policy::exact(), &[golden.all()]);
        let divisions = [
            vec![golden.micro((0..n).rev())],
            vec![golden.micro((1..n).chain([0]))],
            vec![golden.micro([n - 1]), golden.micro(0..n - 1)],
            (0..n).map(|i| golden.micro([i])).collect(),
        ];
        for (i, micros) in divisions.iter().enumerate() {
            let what = format!("{case}, division {i}");
            let (stats, gradients) = golden.gradients(DType::F64, Policy::exact(), micros);
            let of = |key: &str| expected.iter().find(|(k, _)| k == key).unwrap().1.clone();
            check_gradients(&what, &gradients, of, 1e-12);
            within(&what, (stats.loss - whole.loss).abs(), 1e-12);
            within(&what, (stats.grad_norm / whole.grad_norm - 1.0).abs(), 1e-12);
            assert_eq!(stats.tokens, whole.tokens);
        }
    }
}

#[test]
fn a_sequence_has_the_logits_that_it_has_in_a_batch() {
    for case in CASES {
        let golden = Golden::open(case);
        let engine = golden.engine(DType::F64, ADAMW);
        let together = logits(&engine, &golden.all());
        let alone = (0..golden.inputs.sequences.len()).flat_map(|i| logits(&engine, &golden.micro([i])));
        within(case, largest(together.iter().zip(alone).map(|(x, y)| f64::from(x - y))), 1e-6);
    }
}

#[test]
fn a_saved_model_is_read_back_to_the_bit() {
    let (tokenizer, runs) = (tokenizer(), tempfile::tempdir().unwrap());
    for case in CASES {
        let golden = Golden::open(case);
        let before = golden.engine(DType::F32, ADAMW);
        let dir = runs.path().join(case);
        save_model_folder(&dir, &before.model.config, &before.model.registry.saved(|_| true), tokenizer.path(), None)
            .unwrap();
        let after = engine(&dir, &Config::open(&dir).unwrap(), DType::F32, ADAMW);
        assert_eq!(weights(&before), weights(&after), "{case}");
        let batch = golden.all();
        assert_eq!(logits(&before, &batch), logits(&after, &batch), "{case}");
    }
}

/// A checkpoint of the bare encoder, as the hub has them: no `bert.` prefix, no classifier.
#[test]
fn a_missing_head_is_initialised_named_and_saved() {
    let golden = Golden::open("gelu");
    let full = golden.engine(DType::F32, ADAMW);
    let bare = tokenizer();
    fs::copy(golden.dir.join("config.json"), bare.path().join("config.json")).unwrap();
    let saved = full.model.registry.saved(|_| true);
    let body: Vec<Saved<'_>> = saved
        .iter()
        .filter_map(|s| {
            let name = s.name.strip_prefix("bert.")?.to_owned();
            Some(Saved { name, ..s.clone() })
        })
        .collect();
    write(&bare.path().join("model.safetensors"), &body, &[]).unwrap();
    let load = |seed| {
        load::model(bare.path(), golden.config.clone(), &Device::cpu(), DType::F32, seed, Anew::default()).unwrap()
    };
    let loaded = load(7);
    assert_eq!(loaded.warnings, ["not in the checkpoint, initialised: classifier.weight, classifier.bias"]);
    let before = engine(bare.path(), &golden.config, DType::F32, ADAMW);
    let head = |weights: &[(String, Vec<f64>)]| -> Vec<Vec<f64>> {
        weights.iter().filter(|(k, _)| k.starts_with("classifier.")).map(|(_, w)| w.clone()).collect()
    };
    let (now, [weight, bias]) = (weights(&before), &head(&weights(&before))[..]) else { panic!("a weight and a bias") };
    let bert = golden.config.architecture.downcast_ref::<BertConfig>().expect("a BERT");
    let (n, std) = (weight.len() as f64, bert.initializer_range);
    within("spread of the new head", (norm(weight) / n.sqrt() / std - 1.0).abs(), 4.0 / (2.0 * n).sqrt());
    assert!(bias.iter().all(|&b| b == 0.0));
    for ((key, found), (_, of_full)) in now.iter().zip(weights(&full)) {
        assert_eq!(*found == of_full, !key.starts_with("classifier."), "{key}");
    }
    let other = Engine { model: load(8).model, ..engine(bare.path(), &golden.config, DType::F32, ADAMW) };
    assert_ne!(head(&weights(&other)), head(&now), "another seed, another head");

    let runs = tempfile::tempdir().unwrap();
    let dir = runs.path().join("model");
    save_model_folder(&dir, &before.model.config, &before.model.registry.saved(|_| true), bare.path(), None).unwrap();
    let after = engine(&dir, &Config::open(&dir).unwrap(), DType::F32, ADAMW);
    let batch = golden.all();
    assert_eq!(logits(&before, &batch), logits(&after, &batch));
}

/// An adapter that PEFT wrote: its base model's inputs, and the model with it.
fn adapted(case: &str, base: &str, dtype: DType) -> (Golden, PathBuf, Engine) {
    let mut golden = Golden::open(base.strip_prefix("bert-").unwrap());
    let dir = golden.dir.with_file_name(format!("lora-{case}"));
    let folder = with_tokenizer(&golden.dir);
    let base = folder.path().display().to_string();
    let loaded = load::adapted(&dir, Some(&base), FAMILIES, |_| {}, &Device::cpu(), dtype).unwrap();
    assert!(loaded.initialised.is_empty(), "{:?}", loaded.initialised);
    let mut model = loaded.model;
    let whole = adapter::read_config(&dir).unwrap().lora.modules_to_save;
    let learned = |key: &str| lora::is_adapter_key(key) || lora::is_saved_whole(&whole, key);
    model.registry.freeze(|key| !learned(key)).unwrap();
    golden.expected = Weights::open_file(&dir.join("expected.safetensors")).unwrap();
    (golden, dir, engine_of(model, GRADIENT))
}

/// A copy of a model folder with a tokenizer's file, which a folder that is looked up needs.
fn with_tokenizer(model: &Path) -> tempfile::TempDir {
    let dir = tokenizer();
    for name in ["config.json", "model.safetensors"] {
        fs::copy(model.join(name), dir.path().join(name)).unwrap();
    }
    dir
}

const ADAPTERS: [(&str, &str); 3] = [("pairs", "bert-pairs"), ("stabilised", "bert-gelu"), ("pooler", "bert-pairs")];

/// Adapters with settings that are read and not written: ranks and factors by module, biases.
const ONLY_READ: [(&str, &str); 2] = [("patterns", "bert-gelu"), ("some-layers", "bert-pairs")];

#[test]
fn adapters_that_are_only_read_are_those_of_peft() {
    for (case, base) in ONLY_READ {
        // in f64 the factors of B are still rounded once to f32
        for (dtype, limit) in [(DType::F32, 1e-5), (DType::F64, 1e-6)] {
            let (golden, _, engine) = adapted(case, base, dtype);
            let logits: Vec<f64> = logits(&engine, &golden.all()).into_iter().map(f64::from).collect();
            within(&format!("{case} in {dtype:?}"), largest(minus(&logits, &golden.expected("logits"))), limit);
        }
    }
}

#[test]
fn adapters_are_those_of_peft() {
    for ((case, base), (dtype, logit_limit, gradient_limit)) in
        ADAPTERS.into_iter().flat_map(|c| [(DType::F32, 1e-5, 1e-4), (DType::F64, 1e-6, 1e-6)].map(|d| (c, d)))
    {
        let (golden, _, mut engine) = adapted(case, base, dtype);
        let what = format!("{case} in {dtype:?}");
        let all = golden.all();
        let logits: Vec<f64> = logits(&engine, &all).into_iter().map(f64::from).collect();
        within(&what, largest(minus(&logits, &golden.expected("logits"))), logit_limit);
        let stats = engine.step(&[all], 0.0, 1, false).unwrap();
        within(&what, (stats.loss - golden.expected("loss")[0]).abs(), logit_limit);
        let registry = &engine.model.registry;
        let mut gradients = Vec::new();
        for e in registry.entries.iter().filter(|e| registry.is_trainable(e)) {
            let moments = engine.update.moments[e.param.index()].as_ref().unwrap();
            gradients.push((e.key.clone(), moments.tensors().next().unwrap().1.to_f64()[e.range()].to_vec()));
        }
        check_gradients(&what, &gradients, |key| golden.expected(&format!("grad.{key}")), gradient_limit);
        let names = golden.expected.names().filter(|n| n.starts_with("grad.")).count();
        assert_eq!(gradients.len(), names, "{what}: every learned tensor has its gradient");
    }
}

/// What we save is, tensor for tensor, the file that PEFT saved, and gives the same logits when it is read back.
#[test]
fn adapters_are_saved_as_peft_saves_them() {
    let runs = tempfile::tempdir().unwrap();
    for (case, tiny) in ADAPTERS {
        let (golden, theirs, engine) = adapted(case, tiny, DType::F32);
        let settings = adapter::read_config(&theirs).unwrap().lora;
        let ours = runs.path().join(case);
        let model = &engine.model;
        let folder = with_tokenizer(&golden.dir);
        let name = folder.path().display().to_string();
        let json = adapter::to_json(&settings, model, &name);
        save_adapter_folder(
            &ours,
            model.config.family(),
            json,
            &adapter::saved(&model.registry, &settings),
            folder.path(),
            None,
        )
        .unwrap();
        let file = |dir: &Path| Weights::open_file(&dir.join(ADAPTER_WEIGHTS_FILE)).unwrap();
        let (found, expected) = (file(&ours), file(&theirs));
        assert_eq!(found.shapes().collect::<Vec<_>>(), expected.shapes().collect::<Vec<_>>());
        for (name, shape) in expected.shapes() {
            let [mut a, mut b] = [(); 2].map(|()| vec![0.0; shape.iter().product()]);
            found.read(name, &mut a).unwrap();
            expected.read(name, &mut b).unwrap();
            assert_eq!(a, b, "{name}");
        }
        let AdapterConfig { lora: again, base, .. } = adapter::read_config(&ours).unwrap();
        assert_eq!((again, base), (settings, Some(Base { name, revision: None })));
        let back = load::adapted(&ours, None, FAMILIES, |_| {}, &Device::cpu(), DType::F32).unwrap();
        let (_, _, other) = adapted(case, tiny, DType::F32);
        let back = Engine { model: back.model, ..other };
        let batch = golden.all();
        assert_eq!(logits(&back, &batch), logits(&engine, &batch));
    }
}

/// `W + s·B·A` gives what W and the adapter give.
#[test]
fn a_merged_adapter_gives_the_same_logits() {
    for (case, base) in ADAPTERS.into_iter().chain(ONLY_READ) {
        let (golden, _, mut engine) = adapted(case, base, DType::F32);
        let batch = golden.all();
        let before = logits(&engine, &batch);
        lora::merge(&mut engine.model);
        let after = logits(&engine, &batch);
        within(case, largest(before.iter().zip(&after).map(|(x, y)| f64::from(x - y))), 1e-5);
        assert!(before != after, "{case}: other sums, other roundings");
        assert!(!engine.model.registry.entries.iter().any(|e| lora::is_adapter_key(&e.key)));
        let plain = logits(&golden.engine(DType::F32, ADAMW), &batch);
        assert!(
            largest(plain.iter().zip(&after).map(|(x, y)| f64::from(x - y))) > 1e-2,
            "{case}: the adapter does something"
        );
    }
}
