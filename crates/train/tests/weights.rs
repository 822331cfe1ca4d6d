//! Trained matrices in bf16: what is computed, planned, resumed and saved.

mod common;

use std::sync::Arc;

use colrow_autograd::CachePlace;
use colrow_models::checkpoint::load::{self, Anew};
use colrow_models::checkpoint::save::save_model_folder;
use colrow_models::checkpoint::weights::{Dtype, Weights};
use colrow_models::config::Config;
use colrow_models::family::HeadKind;
use colrow_models::model::Model;
use colrow_tensor::rng::Key;
use colrow_tensor::{DType, Device, Weight};
use colrow_train::checkpoint::{self, State};
use colrow_train::data::{Batch, Labels, Lengths};
use colrow_train::machine::Resident;
use colrow_train::objective::of_model;
use colrow_train::plan::{Shape, plan};
use colrow_train::recipe::Recipe;
use colrow_train::step::{Engine, Hyperparameters};
use colrow_train::{keeping, trained};
use common::{floats, model, recipe};
use serde_json::{Value, json};

/// An encoder, an encoder with a decoder whose embedding is tied, and decoders with a tied head and with a head of their own.
fn configs() -> [Config; 4] {
    let bert = json!({
        "model_type": "bert", "hidden_size": 72, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 136, "vocab_size": 61, "max_position_embeddings": 40, "num_labels": 3,
    });
    let t5 = json!({
        "model_type": "t5", "d_model": 72, "d_kv": 36, "num_heads": 2, "d_ff": 136, "num_layers": 2,
        "vocab_size": 61, "feed_forward_proj": "relu", "tie_word_embeddings": true, "initializer_factor": 0.5,
    });
    let llama = |tied: bool| {
        json!({
            "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "intermediate_size": 136, "vocab_size": 61, "tie_word_embeddings": tied,
            "dtype": "float16",
        })
    };
    let parse = |json: Value| Config::from_json(json.to_string().as_bytes(), "config.json".as_ref()).unwrap();
    [bert, t5, llama(true), llama(false)].map(parse)
}

fn engine(model: Model, recipe: &Recipe) -> Engine {
    let policy = Arc::new(keeping::policy(&recipe.keep, &model.sites()).unwrap());
    let mut engine = Engine::new(model, Hyperparameters::from(&recipe.optim));
    engine = engine.keeping(policy, 1000, CachePlace::Memory).unwrap();
    (engine.gradient.key, engine.gradient.dropout, engine.update.key) = (Key::new(5), true, Key::new(6));
    engine
}

fn lengths(config: &Config) -> Lengths {
    let is_text = config.family().head == HeadKind::Language;
    Lengths { sources: vec![9, 14, 5], targets: is_text.then(|| vec![3, 2, 4]) }
}

fn batch(engine: &Engine, seed: u64) -> Batch {
    let mut batch = engine.objective.batch_of_lengths(&lengths(&engine.model.config));
    let key = Key::new(seed);
    batch.tokens.ids.iter_mut().zip(0..).for_each(|(id, i)| *id = (key.uniform(i) * 61.0) as u32);
    if batch.labels.is_some() {
        batch.labels = Some(Labels::Class(vec![0, 2, 1]));
    }
    batch
}

const BF16: &str = "train.weights=bf16";

fn in_codes(model: &Model) -> usize {
    model.registry.params.iter().filter(|(_, p)| matches!(p.value, Weight::Coded(_))).count()
}

/// Linears and tables, and nothing else; two bytes each.
#[test]
fn matrices_are_held_in_two_bytes() {
    for config in configs() {
        let [bf16, f32] = [&[BF16][..], &[]].map(|sets| model(&config, &recipe(sets)));
        for ((_, p), (_, dense)) in bf16.registry.params.iter().zip(f32.registry.params.iter()) {
            let vector = ["orm", "norm", ".bias", "relative_attention_bias"].iter().any(|part| p.name.contains(part));
            let is_coded = matches!(p.value, Weight::Coded(_));
            assert_eq!(is_coded, !vector, "{}", p.name);
            assert_eq!(p.value.bytes() * if is_coded { 2 } else { 1 }, dense.value.bytes(), "{}", p.name);
        }
        let bytes: usize = bf16.registry.params.iter().map(|(_, p)| p.value.bytes()).sum();
        assert_eq!(bf16.registry.params.device().meter().live().weights, bytes);
    }
}

/// The first step has the loss and the gradient of the model of the same numbers, to the bit.
#[test]
fn gradients_are_those_of_the_numbers() {
    for config in configs() {
        for policy in ["exact", "lean", "recompute"] {
            let keep = format!("keep.policy={policy}");
            let (with, without) = (recipe(&[BF16, &keep]), recipe(&[&keep]));
            let (bf16, mut f32) = (model(&config, &with), model(&config, &without));
            for ((_, from), (_, to)) in bf16.registry.params.iter().zip(f32.registry.params.iter_mut()) {
                to.value.dense_mut().write_f64(floats(&from.value));
            }
            let step = |mut engine: Engine| {
                let micros = [batch(&engine, 1), batch(&engine, 2)];
                let stats = engine.step(&micros, 1e-3, 1, false).unwrap();
                (stats.loss, stats.grad_norm, stats.kept_bytes)
            };
            assert_eq!(step(engine(bf16, &with)), step(engine(f32, &without)), "{policy}");
        }
    }
}

#[test]
fn the_plan_is_the_meters_peak() {
    for config in configs() {
        for sets in [
            &[][..],
            &["optim.states=8bit", "keep.policy=lean"],
            &["optim.states=8bit", "optim.update=in-backward", "optim.clip=0", "keep.policy=recompute"],
        ] {
            let recipe = recipe(&[&[BF16], sets].concat());
            let micros = vec![lengths(&config); if sets.len() > 2 { 1 } else { 2 }];
            let policy = keeping::policy(&recipe.keep, &trained::meta_model(config.clone(), &recipe).unwrap().sites());
            let planned = plan(&Shape {
                processes: 1,
                rounds: 1,
                config: &config,
                objective: of_model(&config, 0),
                choose_trained: &|model| trained::choose_trained(model, &recipe),
                optim: Hyperparameters::from(&recipe.optim),
                policy: Arc::new(policy.unwrap()),
                auto: &[],
                micros: &micros,
                evaluated: &[],
                cached_tokens: 1000,
                threads: rayon::current_num_threads(),
                resident: Resident::default(),
                host: 0,
                mapped: 0,
            })
            .unwrap();
            let mut engine = engine(model(&config, &recipe), &recipe);
            for step in 1..=2 {
                let micros: Vec<_> = (0..micros.len() as u64).map(|i| batch(&engine, step + i)).collect();
                let stats = engine.step(&micros, 1e-3, step, false).unwrap();
                assert_eq!(stats.peak, planned.peak_bytes_by_class, "{sets:?}");
                assert_eq!((stats.kept_bytes, &stats.ledger), (planned.kept_bytes, &planned.ledger), "{sets:?}");
            }
        }
    }
}

fn run(engine: &mut Engine, steps: std::ops::RangeInclusive<u64>) -> Vec<f64> {
    let step = |step| {
        let batch = batch(engine, step % 3);
        engine.step(&[batch], 1e-3, step, false).unwrap().loss
    };
    steps.map(step).collect()
}

#[test]
fn a_run_goes_on_to_the_bit_from_its_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    for (i, config) in configs().into_iter().enumerate() {
        for states in ["f32", "8bit"] {
            let recipe = recipe(&[BF16, "keep.policy=lean", &format!("optim.states={states}")]);
            let new = || engine(model(&config, &recipe), &recipe);
            let mut whole = new();
            run(&mut whole, 1..=3);
            let folder = dir.path().join(format!("{i}{states}"));
            let mut state = State::default();
            state.step = 3;
            checkpoint::write(&folder, &whole, &state).unwrap();
            let written = folder.join("step-3");
            let mut resumed = new();
            checkpoint::restore(&written, &checkpoint::state(&written).unwrap(), &mut resumed).unwrap();
            assert!(common::weights(&whole) == common::weights(&resumed), "{states}");
            assert_eq!(run(&mut whole, 4..=7), run(&mut resumed, 4..=7), "{states}");
            assert!(common::weights(&whole) == common::weights(&resumed), "{states}");
            // other random numbers are another run
            let mut other = new();
            other.update.key = Key::new(7);
            run(&mut other, 1..=7);
            assert!(common::weights(&whole) != common::weights(&other), "{states}");
        }
    }
}

/// What is saved comes back to the bit, as BF16 where it was trained in it, and config.json says so.
#[test]
fn a_model_is_saved_as_it_was_trained() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    std::fs::create_dir(&source).unwrap();
    std::fs::write(source.join("tokenizer.json"), "{}").unwrap();
    for (i, config) in configs().into_iter().enumerate() {
        let recipe = recipe(&[BF16]);
        let mut engine = engine(model(&config, &recipe), &recipe);
        run(&mut engine, 1..=3);
        let folder = dir.path().join(i.to_string());
        let tuned = &engine.model;
        save_model_folder(&folder, &tuned.config, &tuned.registry.saved(|_| true), &source, None).unwrap();
        let stored = Weights::open(&folder).unwrap();
        for entry in &tuned.registry.entries {
            let coded = matches!(tuned.registry.params[entry.param].value, Weight::Coded(_));
            assert_eq!(stored.dtype(&entry.key), Some(if coded { Dtype::BF16 } else { Dtype::F32 }), "{}", entry.key);
        }
        let json: Value = serde_json::from_slice(&std::fs::read(folder.join("config.json")).unwrap()).unwrap();
        assert_eq!(json[if i < 2 { "torch_dtype" } else { "dtype" }], "bfloat16");
        let anew = Anew { head: false, body: false };
        let loaded = Config::open(&folder).unwrap();
        let dense = load::model(&folder, loaded.clone(), &Device::cpu(), DType::F32, 0, anew).unwrap().model;
        let mut blank = trained::meta_model(loaded, &recipe).unwrap();
        blank.move_to(&Device::cpu());
        let again = load::read(&folder, blank, 0, anew).unwrap().model;
        assert!(in_codes(&again) > 4 && in_codes(&dense) == 0);
        for ((_, p), ((_, again), (_, dense))) in
            tuned.registry.params.iter().zip(again.registry.params.iter().zip(dense.registry.params.iter()))
        {
            let want = floats(&p.value);
            assert!(want == floats(&again.value) && want == floats(&dense.value), "{}", p.name);
        }
    }
}

/// Sixty steps on three batches: the loss falls as far. An update of a weight of size 0.02 is here 1e-3 and a place 1e-4, so that what
/// rounding adds to a step, half a place at most, is a twentieth of it and of either sign.
#[test]
fn the_loss_falls_as_in_f32() {
    for config in configs() {
        let losses = [&[BF16][..], &[]].map(|sets| {
            let recipe = recipe(&[sets, &["keep.policy=exact"]].concat());
            let mut engine = engine(model(&config, &recipe), &recipe);
            engine.gradient.dropout = false;
            let losses = run(&mut engine, 1..=60);
            (losses[..3].iter().sum::<f64>() / 3.0, losses[57..].iter().sum::<f64>() / 3.0)
        });
        let [bf16, f32] = losses;
        let fall = f32.0 - f32.1;
        assert!(fall > 0.2 * f32.0, "{losses:?}");
        assert!((bf16.0 - f32.0).abs() < 0.02 * fall + 0.01 && (bf16.1 - f32.1).abs() < 0.05 * fall, "{losses:?}");
    }
}

/// Modules that are saved whole are held in bf16, adapters are not; where there is nothing to hold, that is said.
#[test]
fn what_is_not_trained_whole_is_not_held() {
    let [bert, .., llama] = configs();
    let whole = model(&bert, &recipe(&[BF16, "train.method=lora", "train.modules_to_save=['classifier']"]));
    let coded = whole.registry.params.iter().filter(|(_, p)| matches!(p.value, Weight::Coded(_)));
    assert_eq!(coded.map(|(_, p)| p.name.as_str()).collect::<Vec<_>>(), ["classifier.weight"]);
    let refused = |config: &Config, sets: &[&str]| {
        let sets: Vec<String> = sets.iter().map(|&s| s.to_owned()).collect();
        let parsed = Recipe::parse("model.path = 'm'", "test", &sets);
        parsed.and_then(|recipe| trained::meta_model(config.clone(), &recipe)).unwrap_err().to_string()
    };
    for (sets, needle) in [
        (&[BF16, "train.method=lora"][..], "trains others: adapters and biases stay in f32"),
        (&[BF16, "train.method=bitfit", "train.modules_to_save=[]"], "model.base = \"bf16\""),
        (
            &[BF16, "train.freeze=['*proj*', '*embed*', 'lm_head*']"],
            "train.weights: \"bf16\" is for matrices that are trained",
        ),
    ] {
        let e = refused(&llama, sets);
        assert!(e.contains(needle), "{e}");
    }
}

/// An infinity in a matrix in codes is found, and of a stack the tensor that has it is named.
#[test]
fn what_is_not_finite_is_named() {
    let [bert, ..] = configs();
    let recipe = recipe(&[BF16]);
    let mut engine = engine(model(&bert, &recipe), &recipe);
    assert_eq!(checkpoint::not_finite(&engine), None);
    let registry = &mut engine.model.registry;
    let entry = registry.entries.iter().find(|e| e.key.ends_with("layer.1.attention.self.key.weight")).unwrap();
    let (param, key, last) = (entry.param, entry.key.clone(), entry.range().end - 1);
    let mut numbers: Vec<f32> = floats(&registry.params[param].value).iter().map(|&x| x as f32).collect();
    numbers[last] = f32::INFINITY;
    registry.params[param].value.writer(0).push(&numbers);
    assert_eq!(checkpoint::not_finite(&engine), Some(key));
}
