//! T5, its gradients and its answers against `transformers` (`tests/golden/make_t5.py`).

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use colrow_models::checkpoint::adapter;
use colrow_models::checkpoint::load::{self, Anew};
use colrow_models::checkpoint::safetensors::{Data, Saved, write};
use colrow_models::checkpoint::save::save_model_folder;
use colrow_models::checkpoint::weights::Weights;
use colrow_models::config::Config;
use colrow_models::families::FAMILIES;
use colrow_models::lora;
use colrow_models::tokens::Tokens;
use colrow_tensor::{Buckets, DType, Device};
use colrow_train::data::Batch;
use common::{ADAMW, GRADIENT, engine, gradients, largest, minus, norm, numbers, tokenizer, weights, within};
use serde::Deserialize;

const CASES: [&str; 3] = ["relu", "gated", "long"];
/// The reference takes the mean square of its norms in f32, also where all else is f64: a relative error of up to ε/2 = 6e-8 in each of the at
/// most 13 norms that a row passes, forward and backward, with cancellation left over in small gradients.
const REFERENCE: f64 = 4e-6;

#[derive(Deserialize)]
struct Inputs {
    sources: Vec<Vec<u32>>,
    targets: Vec<Vec<u32>>,
    longest: usize,
    answers: Vec<Vec<u32>>,
}

struct Golden {
    dir: PathBuf,
    config: Config,
    inputs: Inputs,
    expected: Weights,
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
}

impl Golden {
    fn open(case: &str) -> Self {
        let dir = golden(&format!("t5-{case}"));
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

    /// The pairs `which`, in this order.
    fn micro(&self, which: impl IntoIterator<Item = usize>) -> Batch {
        let which: Vec<usize> = which.into_iter().collect();
        let tokens = Tokens::of(which.iter().map(|&i| &self.inputs.sources[i]));
        let targets = Tokens::of(which.iter().map(|&i| &self.inputs.targets[i]));
        Batch { special: vec![false; tokens.ids.len()], tokens, targets: Some(targets), ..Batch::default() }
    }

    fn all(&self) -> Batch {
        self.micro(0..self.inputs.sources.len())
    }
}

#[test]
fn loss_and_gradients_are_those_of_transformers() {
    for case in CASES {
        let golden = Golden::open(case);
        for (dtype, limit) in [(DType::F64, REFERENCE), (DType::F32, 1e-4)] {
            let engine = engine(&golden.dir, &golden.config, dtype, GRADIENT);
            let (stats, found) = gradients(engine, &[golden.all()]);
            let what = format!("{case} {dtype:?}");
            within(&format!("{what}: loss"), stats.loss / golden.expected("loss")[0] - 1.0, limit);
            within(&format!("{what}: loss"), 1.0 - stats.loss / golden.expected("loss")[0], limit);
            within(&what, (stats.grad_norm / golden.expected("grad_norm")[0] - 1.0).abs(), limit);
            for (key, found) in found {
                let want = golden.expected(&format!("grad.{key}"));
                within(&format!("{what}: gradient of {key}"), norm(&minus(&found, &want)) / norm(&want), limit);
            }
        }
    }
}

/// The mean is over the tokens of all targets, however they are divided.
#[test]
fn micro_batches_give_the_gradients_of_the_batch() {
    let golden = Golden::open("relu");
    let of = |micros: &[Batch]| gradients(engine(&golden.dir, &golden.config, DType::F64, GRADIENT), micros);
    let (whole, in_parts) = (of(&[golden.all()]), of(&[golden.micro([2]), golden.micro([0, 3]), golden.micro([1])]));
    within("loss", (whole.0.loss - in_parts.0.loss).abs(), 1e-12);
    for ((key, whole), (_, parts)) in whole.1.iter().zip(&in_parts.1) {
        within(key, largest(minus(whole, parts)), 1e-12 * (1.0 + largest(whole.iter().copied())));
    }
}

/// Weights of 1 change no bit; a target's last token without weight adds nothing to the loss and to no gradient, and the rest have the mean of
/// what is left.
#[test]
fn targets_count_by_their_weights() {
    let golden = Golden::open("relu");
    let of = |batch: Batch| gradients(engine(&golden.dir, &golden.config, DType::F64, GRADIENT), &[batch]);
    let weighted = |weight: &dyn Fn(usize) -> f32| {
        let mut batch = golden.all();
        let targets = batch.targets.as_mut().unwrap();
        let bounds = targets.bounds.clone();
        // of each target of several tokens
        let last = |row: usize| bounds.windows(2).any(|w| w[1] - w[0] > 1 && w[1] == row as u32 + 1);
        let weights = (0..targets.ids.len()).map(|row| if last(row) { weight(row) } else { 1.0 });
        targets.weight = Some(weights.collect());
        batch
    };
    let (plain, ones) = (of(golden.all()), of(weighted(&|_| 1.0)));
    assert_eq!((plain.0.loss, plain.0.grad_norm, plain.1), (ones.0.loss, ones.0.grad_norm, ones.1));
    let mut shorter = golden.all();
    let cut = |ids: &[u32]| ids[..(ids.len() - 1).max(1)].to_vec();
    shorter.targets = Some(Tokens::of(golden.inputs.targets.iter().map(|ids| cut(ids))));
    let (without, shorter) = (of(weighted(&|_| 0.0)), of(shorter));
    within("loss", (without.0.loss - shorter.0.loss).abs(), 1e-12);
    for ((key, without), (_, shorter)) in without.1.iter().zip(&shorter.1) {
        within(key, largest(minus(without, shorter)), 1e-12 * (1.0 + largest(shorter.iter().copied())));
    }
    let error = engine(&golden.dir, &golden.config, DType::F64, GRADIENT)
        .step(
            &[Batch { targets: Some(Tokens { weight: Some(vec![0.0; 99]), ..Tokens::default() }), ..golden.all() }],
            0.0,
            1,
            false,
        )
        .unwrap_err();
    assert!(error.to_string().contains("nothing of this step's batch counts"), "{error}");
}

#[test]
fn a_step_of_adamw_gives_the_weights_of_pytorch() {
    for case in CASES {
        let golden = Golden::open(case);
        let mut engine = engine(&golden.dir, &golden.config, DType::F32, ADAMW);
        engine.step(&[golden.all()], 1e-3, 1, false).unwrap();
        for (key, found) in weights(&engine) {
            let want = golden.expected(&format!("adamw.{key}"));
            within(&format!("{case}: {key}"), largest(minus(&found, &want)), 2e-6);
        }
    }
}

#[test]
fn answers_are_those_of_transformers_in_a_batch_and_alone() {
    for case in CASES {
        let golden = Golden::open(case);
        let engine = engine(&golden.dir, &golden.config, DType::F32, ADAMW);
        let longest = golden.inputs.longest;
        assert_eq!(engine.model.generate(&golden.all().tokens, longest).unwrap(), golden.inputs.answers, "{case}");
        for (i, answer) in golden.inputs.answers.iter().enumerate() {
            assert_eq!(engine.model.generate(&golden.micro([i]).tokens, longest).unwrap()[0], *answer, "{case} {i}");
            let short = engine.model.generate(&golden.micro([i]).tokens, 2).unwrap();
            assert_eq!(short[0], answer[..answer.len().min(2)], "{case} {i}");
        }
    }
}

#[test]
fn a_saved_model_is_read_back_to_the_bit() {
    let (tokenizer, runs) = (tokenizer(), tempfile::tempdir().unwrap());
    for case in CASES {
        let golden = Golden::open(case);
        let before = engine(&golden.dir, &golden.config, DType::F32, ADAMW);
        let dir = runs.path().join(case);
        let tensors = before.model.registry.saved(|_| true);
        let mut names: Vec<_> = tensors.iter().map(|t| t.name.clone()).collect();
        save_model_folder(&dir, &before.model.config, &tensors, tokenizer.path(), None).unwrap();
        let theirs = Weights::open(&golden.dir).unwrap();
        let mut keys: Vec<_> = theirs.names().map(str::to_owned).collect();
        names.sort();
        keys.sort();
        assert_eq!(names, keys, "{case}: the tensors that transformers saves");
        let after = engine(&dir, &Config::open(&dir).unwrap(), DType::F32, ADAMW);
        assert_eq!(weights(&before), weights(&after), "{case}");
    }
}

/// The embedding is found under each of its names, as `transformers` finds it, and two that differ are refused.
#[test]
fn the_embedding_goes_by_four_names() {
    const SHARED: &str = "shared.weight";
    const HEAD: &str = "lm_head.weight";
    const COPIES: [&str; 2] = ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"];
    // a golden model with its embedding under `names`, times `factor` in the last of them, and without the tensor `left_out`
    let load = |golden: &Golden, names: &[&str], factor: f32, left_out: &str| {
        let theirs = Weights::open(&golden.dir).unwrap();
        let read = |name: &str| -> Vec<f32> { numbers(&theirs, name).into_iter().map(|x| x as f32).collect() };
        let mut tensors: Vec<_> =
            theirs.names().filter(|&n| n != SHARED && n != left_out).map(|n| (n, n, read(n))).collect();
        tensors.extend(names.iter().map(|&name| (name, SHARED, read(SHARED))));
        if let Some((_, _, last)) = tensors.last_mut() {
            last.iter_mut().for_each(|x| *x *= factor);
        }
        let saved = tensors.iter().map(|(name, key, data)| Saved {
            name: name.to_string(),
            shape: theirs.shape(key).unwrap().to_vec(),
            data: Data::F32(data),
        });
        let folder = tokenizer();
        write(&folder.path().join("model.safetensors"), &saved.collect::<Vec<_>>(), &[]).unwrap();
        let loaded = load::model(folder.path(), golden.config.clone(), &Device::cpu(), DType::F64, 7, Anew::default());
        loaded.map(|loaded| {
            assert!(loaded.initialised.is_empty() && loaded.warnings.is_empty(), "{:?}", loaded.warnings);
            gradients(common::engine_of(loaded.model, GRADIENT), &[golden.all()]).0.loss
        })
    };
    let (tied, untied) = (Golden::open("relu"), Golden::open("gated"));
    for (golden, names) in [
        (&tied, &[COPIES[0]][..]),
        (&tied, &[COPIES[1]]),
        (&tied, &[HEAD]),
        (&tied, &[COPIES[1], COPIES[0]]),
        (&tied, &[SHARED, COPIES[0], COPIES[1], HEAD]),
        (&untied, &[COPIES[0]]),
        (&untied, &[COPIES[1]]),
    ] {
        let loss = load(golden, names, 1.0, "").unwrap();
        within(&format!("{names:?}"), (loss / golden.expected("loss")[0] - 1.0).abs(), REFERENCE);
    }
    let losses: BTreeMap<String, f64> = serde_json::from_slice(&fs::read(golden("t5-names.json")).unwrap()).unwrap();
    for (left_out, names) in [(HEAD, &[SHARED][..]), (SHARED, &[])] {
        let loss = load(&untied, names, 1.0, left_out).unwrap();
        within(left_out, (loss / losses[left_out] - 1.0).abs(), REFERENCE);
    }
    for names in [[SHARED, COPIES[1]], COPIES, [COPIES[0], HEAD]] {
        let error = load(&tied, &names, 2.0, "").unwrap_err().to_string();
        assert!(error.contains("expected the same numbers"), "{error}");
    }
}

/// An adapter that began as PiSSA, which PEFT converted to plain LoRA.
#[test]
fn a_converted_adapter_is_that_of_peft() {
    let (dir, inputs, folder) = (golden("lora-converted"), Golden::open("relu"), tokenizer());
    for file in ["config.json", "model.safetensors"] {
        fs::copy(inputs.dir.join(file), folder.path().join(file)).unwrap();
    }
    let expected = Weights::open_file(&dir.join("expected.safetensors")).unwrap();
    let base = folder.path().display().to_string();
    let model = load::adapted(&dir, Some(&base), FAMILIES, |_| {}, &Device::cpu(), DType::F64).unwrap().model;
    let loss = gradients(common::engine_of(model, GRADIENT), &[inputs.all()]).0.loss;
    // PEFT holds the base model without what it took off in f32: a rounding of each of its weights
    within("loss", (loss / numbers(&expected, "loss")[0] - 1.0).abs(), 1e-5);
}

/// An adapter that PEFT wrote: its loss and the gradients of every A and B; and ours, written again, tensor for tensor.
#[test]
fn adapters_are_those_of_peft() {
    let base = golden("t5-relu");
    let folder = tokenizer();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(base.join(file), folder.path().join(file)).unwrap();
    }
    let (dir, inputs) = (golden("lora-t5"), Golden::open("relu"));
    let expected = Weights::open_file(&dir.join("expected.safetensors")).unwrap();
    let of = |key: &str| numbers(&expected, key);
    let base = folder.path().display().to_string();
    for (dtype, limit) in [(DType::F64, REFERENCE), (DType::F32, 1e-4)] {
        let loaded = load::adapted(&dir, Some(&base), FAMILIES, |_| {}, &Device::cpu(), dtype).unwrap();
        assert!(loaded.initialised.is_empty(), "{:?}", loaded.initialised);
        let mut model = loaded.model;
        model.registry.freeze(|key| !lora::is_adapter_key(key)).unwrap();
        let (stats, found) = gradients(common::engine_of(model, GRADIENT), &[inputs.all()]);
        within("loss", (stats.loss / of("loss")[0] - 1.0).abs(), limit);
        let mut learned = 0;
        for (key, found) in found.iter().filter(|(key, _)| lora::is_adapter_key(key)) {
            let want = of(&format!("grad.{key}"));
            within(&format!("{dtype:?}: gradient of {key}"), norm(&minus(found, &want)) / norm(&want), limit);
            learned += 1;
        }
        // q and v of six attentions, wi of four layers, A and B each
        assert_eq!(learned, 2 * (2 * 6 + 4));
    }
    let settings = adapter::read_config(&dir).unwrap().lora;
    let model = load::adapted(&dir, Some(&base), FAMILIES, |_| {}, &Device::cpu(), DType::F32).unwrap().model;
    let ours = folder.path().join("ours.safetensors");
    write(&ours, &adapter::saved(&model.registry, &settings), &[]).unwrap();
    let (ours, theirs) =
        (Weights::open_file(&ours).unwrap(), Weights::open_file(&dir.join("adapter_model.safetensors")).unwrap());
    let all = |weights: &Weights| {
        let mut all: Vec<_> = weights.names().map(|name| (name.to_owned(), numbers(weights, name))).collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    };
    assert_eq!(all(&ours), all(&theirs));
}

/// Sampling of every row is exact; rows and rounding change the gradient.
#[test]
fn policies_reach_every_linear() {
    use colrow_autograd::{Keep, NormSource, Sampling};
    use colrow_tensor::Estimator;
    let golden = Golden::open("relu");
    let of = |keep: Keep| {
        let mut engine = engine(&golden.dir, &golden.config, DType::F64, GRADIENT);
        // attention that rebuilds q, k and v also sums its softmax again, in another order of operations
        let rules = [("*Attention", Keep::Exact), ("*", keep)];
        engine.gradient.policy = std::sync::Arc::new(common::by_patterns(&golden.config, &|_| Ok(()), &rules));
        gradients(engine, &[golden.all()]).1
    };
    let exact = of(Keep::Exact);
    assert!(exact == of(Keep::Nothing), "rebuilt inputs");
    let rows = Sampling { estimator: Estimator::Pps, ratio: 0.5, norms: NormSource::Current, uniform: 0.1 };
    let sampled = of(Keep::Rows(rows));
    for ((key, exact), (_, sampled)) in exact.iter().zip(&sampled) {
        let linear = ["SelfAttention.", "EncDecAttention.", "DenseReluDense."].iter().any(|part| key.contains(part));
        let linear = linear && !key.contains("bias");
        // dx is exact, so that what is not a linear's weight is the same
        assert_eq!(exact != sampled, linear, "{key}");
    }
}

#[derive(Deserialize)]
struct BucketCase {
    bidirectional: bool,
    buckets: usize,
    max_distance: usize,
    of: Vec<usize>,
}

#[derive(Deserialize)]
struct AllBuckets {
    first: i64,
    cases: Vec<BucketCase>,
}

#[test]
fn buckets_are_those_of_transformers() {
    let all: AllBuckets = serde_json::from_slice(&fs::read(golden("t5-buckets.json")).unwrap()).unwrap();
    for BucketCase { bidirectional, buckets, max_distance, of } in all.cases {
        let spec = Buckets { count: buckets, max_distance, bidirectional };
        let found: Vec<usize> = (all.first..).take(of.len()).map(|relative| spec.of(relative)).collect();
        assert_eq!(found, of, "{spec:?}");
    }
}
