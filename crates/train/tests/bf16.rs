//! Training with products of bf16 operands: as good as f32 but for the rounding, and nothing else changes.

mod common;

use colrow_models::config::Config;
use colrow_models::model::Model;
use colrow_tensor::rng::Key;
use colrow_tensor::{DType, Device, Precision};
use colrow_train::data::{Batch, Labels, Lengths};
use colrow_train::step::Engine;
use colrow_train::step::Hyperparameters;
use common::{ADAMW, GRADIENT, engine_of, gradients, minus, norm, weights, within};

const LAYERS: usize = 2;

fn engine(precision: Precision, settings: Hyperparameters) -> Engine {
    let json = serde_json::json!({
        "model_type": "bert", "hidden_size": 48, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
        "intermediate_size": 96, "vocab_size": 61, "max_position_embeddings": 32, "hidden_act": "gelu", "num_labels": 2,
    });
    let config = Config::from_json(json.to_string().as_bytes(), "config.json".as_ref()).unwrap();
    let mut model = Model::new(config, &Device::cpu_with(precision), DType::F32);
    model.init(3);
    engine_of(model, settings)
}

/// Sixteen sequences of random tokens; their labels are random too.
fn micro() -> Batch {
    let mut micro = Batch::of_lengths(&Lengths { sources: (9..25).collect(), targets: None });
    let key = Key::new(4);
    micro.tokens.ids.iter_mut().enumerate().for_each(|(i, id)| *id = (key.uniform(i as u64) * 61.0) as u32);
    micro.labels = Some(Labels::Class((0..16).map(|i| (key.child(1).uniform(i) * 2.0) as u32).collect()));
    micro
}

/// The products that numbers go through one after another, of a layer and of the head.
const IN_LAYER: usize = 4;
const IN_HEAD: usize = 2;

/// u = 2⁻⁸ is the most by which bf16 is off, relatively. A product of operands that are both off by so much is off by 2u of its norm,
/// where errors are no more alike than the terms of its sums are. The errors of one product after another are independent: their
/// squares add up.
fn rounding(products: usize) -> f64 {
    (products as f64).sqrt() * 2.0 / 256.0
}

#[test]
fn loss_and_gradients_are_those_of_f32_but_for_the_rounding() {
    let micros = [micro()];
    let (stats, gradients_f32) = gradients(engine(Precision::F32, GRADIENT), &micros);
    let (rounded, gradients_bf16) = gradients(engine(Precision::Bf16, GRADIENT), &micros);
    let forward = LAYERS * IN_LAYER + IN_HEAD;
    within("loss", (rounded.loss - stats.loss).abs() / stats.loss, rounding(forward));
    // a shift of all keys shifts all scores of a query, which the softmax does not see: the gradient of that bias is rounding alone
    let seen = gradients_f32.iter().zip(&gradients_bf16).filter(|((key, _), _)| !key.ends_with("self.key.bias"));
    for ((key, exact), (_, found)) in seen {
        let off = norm(&minus(found, exact)) / norm(exact);
        within(key, off, rounding(2 * forward + 1));
        // f32 would be off by 10⁻⁶
        assert!(!key.ends_with("dense.weight") || off > 1e-3, "{key}: not rounded to bf16, off by {off:e}");
    }
    assert_eq!((stats.kept_bytes, stats.peak), (rounded.kept_bytes, rounded.peak));
}

#[test]
fn a_batch_is_learned_by_heart_as_in_f32() {
    let micros = [micro()];
    for precision in [Precision::F32, Precision::Bf16] {
        let mut engine = engine(precision, ADAMW);
        let losses: Vec<f64> = (1..=60).map(|step| engine.step(&micros, 1e-3, step, false).unwrap().loss).collect();
        let (first, last) = (losses[0], losses[losses.len() - 1]);
        assert!((0.5..1.0).contains(&first) && last < 0.05, "{precision:?}: from {first} to {last}");
        // weights are no bf16 numbers: small steps are not lost
        let whole = weights(&engine).into_iter().flat_map(|(_, w)| w);
        assert!(whole.filter(|w| (*w as f32).to_bits() & 0xffff != 0).count() > 10_000);
    }
}
