//! What decoders keep, and what their gradients are for it.

use std::path::Path;

use colrow_autograd::{Grads, Keep, Mode, NormSource, Policy, Sampling, Tape, testing};
use colrow_models::config::Config;
use colrow_models::lora::{self, LoraConfig};
use colrow_models::model::Model;
use colrow_models::tokens::Tokens;
use colrow_tensor::rng::Key;
use colrow_tensor::{DType, Device, Estimator, Result};
use colrow_train::keeping;
use colrow_train::recipe::{Keeping, PolicyName, Ratio};
use serde_json::json;

const D: usize = 256;
const LENGTHS: [usize; 3] = [90, 5, 33];
const TOKENS: usize = 128;

/// Feed-forward layers of 3.5·d, a quarter of the heads for keys and values.
fn config(layers: usize) -> Config {
    let json = json!({"model_type": "llama", "hidden_size": D, "num_hidden_layers": layers, "num_attention_heads": 4,
        "num_key_value_heads": 1, "intermediate_size": 7 * D / 2, "vocab_size": 50});
    Config::from_json(json.to_string().as_bytes(), Path::new("config.json")).unwrap()
}

fn model(layers: usize, dtype: DType) -> Model {
    let mut model = Model::new(config(layers), &Device::cpu(), dtype);
    model.init(3);
    model
}

fn tokens() -> Tokens {
    let mut next = 0;
    let sequences = LENGTHS.map(|n| {
        (0..n)
            .map(|_| {
                next = (next * 7 + 11) % 50;
                next
            })
            .collect::<Vec<u32>>()
    });
    let tokens = Tokens::of(sequences);
    let weight = (0..TOKENS).map(|i| if i % 3 == 0 { 0.0 } else { 1.0 }).collect();
    Tokens { weight: Some(weight), ..tokens }
}

fn policy(model: &Model, name: PolicyName) -> Policy {
    keeping::policy(&Keeping { policy: name, ..Keeping::default() }, &model.sites()).unwrap()
}

fn mode(policy: Policy) -> Mode {
    testing::training(Key::new(1), true, policy, None)
}

/// Bytes that a layer keeps of a token, in numbers of d: those of a second layer.
fn kept(name: PolicyName) -> f64 {
    let of = |layers| {
        let model = model(layers, DType::F32);
        let mut tape = Tape::new(&model.registry.params, mode(policy(&model, name)));
        let loss = model.next_token_loss(&mut tape, &tokens()).unwrap();
        let total = tape.ledger().total();
        drop(loss);
        total
    };
    (of(2) - of(1)) as f64 / (TOKENS * D) as f64
}

/// f32: two ẑ and two inputs of linears (16d), q, k, v and what attention gives (10d), gate and up (28d), their product (14d), and sums of
/// rows. In int8 a number takes 1 byte and 1/16 for its group's scale: two ẑ, q, k, v, gate and up.
#[test]
fn a_layer_keeps_what_its_policy_says() {
    let (exact, lean, recompute) = (kept(PolicyName::Exact), kept(PolicyName::Lean), kept(PolicyName::Recompute));
    assert!((64.0..70.0).contains(&exact), "{exact}");
    assert!(lean <= 12.0 && lean > 11.0, "{lean}");
    assert!(recompute <= 1.1, "{recompute}");
    assert!(kept(PolicyName::Leanest) < lean - 1.4);
}

fn gradients(model: &Model, policy: Policy) -> (f64, Vec<Vec<f64>>) {
    let params = &model.registry.params;
    let mut tape = Tape::new(params, mode(policy));
    let loss = model.next_token_loss(&mut tape, &tokens()).unwrap();
    let value = loss.value.scalar();
    let mut grads = Grads::new(params);
    tape.backward(loss, 1.0, &mut grads).unwrap();
    let gradients = params.iter().filter(|(_, p)| p.trainable).map(|(id, _)| grads.of(id).unwrap().to_f64()).collect();
    (value, gradients)
}

fn distance(a: &[Vec<f64>], b: &[Vec<f64>]) -> f64 {
    let squares = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>();
    let off = squares(&mut a.iter().flatten().zip(b.iter().flatten()).map(|(a, b)| a - b));
    (off / squares(&mut b.iter().flatten().copied())).sqrt()
}

/// The loss is the same to the bit. With all rows, gradients are off by what eight bits take; with drawn ones by more.
#[test]
fn gradients_of_what_is_kept_in_fewer_bits_are_near() {
    let model = model(2, DType::F32);
    let exact = gradients(&model, policy(&model, PolicyName::Exact));
    for name in [PolicyName::Recompute, PolicyName::Lean, PolicyName::Leanest] {
        for (ratio, range) in [(1.0, 0.0..0.02), (0.3, 0.02..0.5)] {
            let keep = Keeping { policy: name, ratio: Ratio::Fixed(ratio), ..Keeping::default() };
            let found = gradients(&model, keeping::policy(&keep, &model.sites()).unwrap());
            assert_eq!(found.0.to_bits(), exact.0.to_bits(), "{name:?}");
            let off = distance(&found.1, &exact.1);
            assert!(off > 0.0 && range.contains(&off), "{name:?} at {ratio}: gradients are off by {off}");
        }
    }
}

/// Adapters whose A reads drawn rows have an unbiased gradient.
#[test]
fn gradients_of_adapters_are_unbiased() {
    let mut model = model(1, DType::F64);
    let settings =
        LoraConfig { targets: vec!["q_proj".into(), "gate_proj".into(), "down_proj".into()], ..Default::default() };
    lora::adapt(&mut model, &settings, 5).unwrap();
    // B is zero at first, and A would have no gradient
    let entries = model.registry.entries.clone();
    let params = &mut model.registry.params;
    for entry in entries.iter().filter(|entry| entry.key.contains("lora_B")) {
        let len = params[entry.param].value.len();
        params[entry.param].value.dense_mut().write_f64((0..len as u64).map(|i| 0.02 * Key::new(9).normal(i)));
    }
    let sites = model.sites();
    let sampling = Sampling { estimator: Estimator::Pps, ratio: 0.3, norms: NormSource::Current, uniform: 0.1 };
    let drawn = |name: &str| if name.ends_with(".lora") { Keep::Rows(sampling) } else { Keep::Exact };
    let drawn = Policy::new(sites.iter().map(|s| (s.name.clone(), drawn(&s.name))));
    // a part of each A's numbers
    let of_a = |seed: u64, policy: Policy| -> Result<Vec<f64>> {
        let params = &model.registry.params;
        let mut tape = Tape::new(params, testing::training(Key::new(seed), false, policy, None));
        let loss = model.next_token_loss(&mut tape, &tokens())?;
        let mut grads = Grads::new(params);
        tape.backward(loss, 1.0, &mut grads)?;
        let entries = entries.iter().filter(|entry| entry.key.contains("lora_A"));
        let numbers = entries.map(|entry| grads.of(entry.param).unwrap().to_f64()[entry.range()].to_vec());
        Ok(numbers.flat_map(|numbers| numbers.into_iter().step_by(37)).collect())
    };
    let exact = of_a(1, Policy::exact()).unwrap();
    testing::check_unbiased(&exact, 400, |trial| of_a(100 + trial, drawn.clone())).unwrap();
}
